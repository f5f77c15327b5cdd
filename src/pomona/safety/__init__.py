"""What a model must not be used for, and what stands against it (report, section 8).

`taxonomy`: the kinds of harm, as data. `guardrail`: a classifier adapter on the resident base that judges
input and output. `patterns`: lists of words per feature.
"""
