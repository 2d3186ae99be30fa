"""Captions of items from the answers of a vision-language model: `python -m examples.prepare.captions`.

The model sees every modality of an item, and all modalities side by side. It returns attributes with value and
confidence, and the most confident value of each attribute goes into a sentence. Read in this order:

- schema.py: the attributes of persons and vehicles, and your own;
- questions.py: images and prompts for the model;
- answers.py: parsing and checking of answers;
- sentence.py: choice of a value per attribute, and the sentence made from the values;
- endpoint.py, local.py: the model, on an OpenAI-compatible server or on this machine;
- journal.py: every raw answer on disk, so that no question is asked twice;
- collect.py: all questions of a split; report.py: report of a run;
- arguments.py, __main__.py: the command.

Differences from the paper: a rule chooses the value of each attribute and a program writes the sentence, instead of a
second language model, so that equal answers make equal sentences. The paper gives the numbers of attributes (13 and 6);
the attributes are ours.
"""
