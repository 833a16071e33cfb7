"""Speed and memory against peers and a floor; see README.md beside this file."""
