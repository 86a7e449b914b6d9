"""How an image comes of features, other than by the network's own tail.

light.py   the bilinear input, and a convolution beside it
coarse.py  where nothing is refined: a light tail, or a copy of the network's
refine.py  where patches are refined: a light tail for the network's last upsampling step
"""
