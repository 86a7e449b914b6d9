"""What `finetune` is made of.

recipe.py      how long and how a stage trains
choices.py     which stages there are, and what is refused before one begins
stages.py      what each stage trains, and by which loss
samples.py     on which crops
pool.py        what is frozen, run once for each crop
run.py         a stage in training, and its checkpoint
validation.py  images that it is measured on, so that the best weights are kept
"""
