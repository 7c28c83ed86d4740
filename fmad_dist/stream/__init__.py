"""From manifests to batches: which image is read when, and how its bytes become tensors.

A whole number that stands for an image is one of three:
- a `position` counts through the endless training stream and keys noise and time (`plan.py`);
- a `row` counts through the images of a mixture, dataset after dataset sorted by name (`mixture.py`);
- an `index` counts through the images of one dataset, sorted by sample id (`dataset.py`).
A plan turns positions into rows, a mixture turns a row into a dataset and an index. A `number` counts other things:
epochs, classes of a mixture, blocks of a shard.
"""
