"""One foreground mask per item: `python -m examples.prepare.masks DATA --modalities RGB NI TI --weights SAM2_FOLDER`.

Read in this order:

- make.py: the settings, and the way from items to files;
- sam2.py: SAM 2 from a local folder, and how it is prompted;
- classical.py: what there is without weights, and how little it knows;
- regions.py: the vote over the modalities, and cleaning;
- quality.py: what a mask is measured by, and which masks are doubtful;
- files.py: masks on disk, which say how they were made;
- report.py: numbers and the picture of the doubtful ones.

The paper uses SAM 2 and says no more than that there is one mask per item: prompts, vote and cleaning are ours.
"""
