"""Measures of a model that sees region tokens.

focus     how much of the answer's attention goes to the object that was asked for
"""
