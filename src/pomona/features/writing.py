"""The features as functions.

    from pomona import features

    print(features.summarize(mail, style="three sentences").text)
    for edit in features.proofread("I has a apple.").edits:
        print(edit.start, edit.original, "->", edit.replacement)

Common options. model: a Model, a RemoteModel or a Router (by default smollm2-135m-4bit, loaded once).
adapter: by default the model's adapter of the task's name, if it has one, else what the model runs by
default; "base" is none. consent: for a Router, whether the text may leave the device. Every result says in
`origin` who answered.
"""

from __future__ import annotations

from pomona.features import plans
from pomona.features.work import sync

summarize = sync(plans.summarize)
proofread = sync(plans.proofread)
rewrite = sync(plans.rewrite)
key_points = sync(plans.key_points)
replies = sync(plans.replies)
prioritize = sync(plans.prioritize)
extract = sync(plans.extract)
