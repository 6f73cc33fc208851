"""The numeric certificate: what a fixed training task computes here, to be compared months later.

Only cli imports this room. task.py computes, in the prefix's interpreter; make.py runs it twice;
document.py is the file; judge.py compares two; words.py says what was found.
"""
