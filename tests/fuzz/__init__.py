"""Fuzzing: whatever bytes come, there is an answer or an error of regiontok's own, soon, in little memory.

``targets.py`` says what is tried on bytes, ``corpus`` has the inputs to begin with, ``python -m tests.fuzz`` runs it.
"""
