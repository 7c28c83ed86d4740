"""Trials of the sweeps. A plan varies one thing at a time from its baseline."""

from dataclasses import replace

from training import Trial

BASE = Trial("base")
REFERENCES = [
    Trial("bank", steps=2),
    Trial("bank taps 1-3 averaged", taps=(1, 2, 3), average=True, steps=2),
    Trial("bank grid 32", grid=32, steps=2),
    Trial("bank grid 32 taps 1-3", grid=32, taps=(1, 2, 3), steps=2),
]
FIRST = [
    BASE,
    *REFERENCES,
    replace(BASE, name="seed 1", seed=1),
    replace(BASE, name="pca", whitening="pca"),
    replace(BASE, name="tap pca", whitening="tap_pca"),
    replace(BASE, name="grid 32", grid=32),
    replace(BASE, name="taps 1-3", taps=(1, 2, 3)),
    replace(BASE, name="taps 1-4", taps=(1, 2, 3, 4)),
    replace(BASE, name="averaged", average=True),
    replace(BASE, name="16k steps", steps=16000),
    replace(BASE, name="1k steps", steps=1000),
    replace(BASE, name="width 384 depth 6", width=384, depth=6, heads=6),
    replace(BASE, name="width 384 depth 12", width=384, depth=12, heads=6, lr=5e-4),
    replace(BASE, name="depth 2", depth=2),
    replace(BASE, name="late times", time_mean=1.0),
    replace(BASE, name="early times", time_mean=-1.0),
    replace(BASE, name="logit-normal", time_mean=0.0),
    replace(BASE, name="learned skip", skip="learned"),
    replace(BASE, name="gaussian skip", skip="gaussian"),
    replace(BASE, name="labels", labels=True),
    replace(BASE, name="flips", flips=True),
    replace(BASE, name="batch 64", batch=64),
    replace(BASE, name="batch 64 lr 2e-3", batch=64, lr=2e-3),
    replace(BASE, name="weight decay .05", weight_decay=0.05),
    replace(BASE, name="pca 384x6", whitening="pca", width=384, depth=6, heads=6),
    replace(BASE, name="grid 32 pca", whitening="pca", grid=32),
    replace(BASE, name="grid 32 384x6", grid=32, width=384, depth=6, heads=6),
    replace(BASE, name="seed 2", seed=2),
    replace(BASE, name="grid 32 taps 1-3", grid=32, taps=(1, 2, 3)),
    replace(BASE, name="grid 32 16k steps", grid=32, steps=16000),
]
PLANS = {"first": FIRST, "rehearsal": [BASE, REFERENCES[0]]}
