"""How blocks run on the windows of chosen patches, and what a window sees beyond its edges.

run.py         gather, then the blocks, among all that is below
sizes.py       how large windows are
trial.py       whether windows do as the whole map does: tried on small images
exchange.py    what looks around on windows sees their neighbours
borders.py       the pixels around a window: those of the windows that own them
shifts.py        attention in shifted windows: a run of patches rolls as one
detours.py       side branches that run on the whole map
arguments.py     what the functions that look around are called with
context.py     what stands where nobody refines: zeros, or a linear guess
per_image.py   means, norms and attention over the whole map: shared by all windows of an image
global_ops.py    which calls are such
reductions.py    and of which functions
products.py      channels that attend to channels, means that weigh pixels
readings.py      how ambiguous ones are read
compiled.py    what torch.compile makes of all this

sizes.py and context.py work on a Split; all others stand below it, for a Split tries its windows by trial.py.
"""
