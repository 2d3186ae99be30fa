"""One sentence per item, written from what a vision-language model sees: `python -m examples.prepare.captions`.

Every modality of an item, and all of them side by side, are shown to the model, which returns attribute, value and
confidence; the most confident value of each attribute goes into a sentence. Read in this order:

- schema.py: the attributes of persons and vehicles, and your own;
- questions.py: what is shown and asked;
- answers.py: what comes back, and when it is wrong;
- sentence.py: which value wins, and how a sentence is made of the winners;
- endpoint.py, local.py: who answers, an OpenAI-compatible server or a model on this machine;
- journal.py: every raw answer on disk, so that nothing is asked twice;
- collect.py: all questions of a split; report.py: what came of it;
- arguments.py, __main__.py: the command.

Differences from the paper: the value of each attribute is chosen by a rule and filled in by a program, not by a second
language model, so that the same answers always make the same sentence; the paper gives the numbers of attributes (13
and 6), the attributes are ours.
"""
