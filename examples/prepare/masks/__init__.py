"""Foreground masks of items: `python -m examples.prepare.masks DATA --modalities RGB NI TI --weights SAM2_FOLDER`.

Read in this order:

- make.py: settings, and the way from items to files;
- sam2.py: SAM 2 from a local folder, and its prompts;
- classical.py: the fallback without weights, and its limits;
- regions.py: the vote over the modalities, and cleaning;
- quality.py: measurements of a mask, and reasons to doubt it;
- files.py: masks on disk, with a note on their origin;
- report.py: report of a run; sheet.py: figure of doubtful masks.

The paper uses SAM 2 and says only that there is one mask per item: prompts, vote and cleaning are ours.
"""
