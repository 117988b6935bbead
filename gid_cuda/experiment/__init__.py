"""Many runs that belong together: a matrix of methods, detectors and seeds, what of it is done, its tables and page.

Above `engine`, which it knows by `scripts/train.py` and by the files of a run's folder.
"""
