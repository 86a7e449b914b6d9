"""What is learned of a network by running it.

probe.py      what it takes and gives: channels, scale, sizes
untouched.py  afterwards it is what it was
modules.py    what is asked of it without running it
thin.py       a forward in a tenth of the time, for what it does and not for what comes of it
receptive.py  how far it looks
"""
