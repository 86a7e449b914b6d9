"""Image files as arrays, and as a network takes them.

images.py  read, write and resize images of any kind
png.py     large PNG files, written by strips
tiff.py    large TIFF files, read where they lie and written by strips
pairs.py   LR and HR images of one name
"""
