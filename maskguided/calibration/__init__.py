"""What `calibrate` is made of.

inputs.py       images as users give them
closed_form.py  tails, skip, score, context and estimate of gain, each fitted in one step
prices.py       what a wrapped network costs at a keep: MACs, or time
measure.py      what it loses there, and its keep for a budget
search.py       where to cut, and which windows
curve.py        what was measured, and chosen
"""
