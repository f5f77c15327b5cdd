"""The features for asyncio: the same names and options as in `writing`, as coroutine functions.

from pomona.features import aio

summaries = await asyncio.gather(*(aio.summarize(mail) for mail in mails))
"""

from __future__ import annotations

from pomona.features import plans
from pomona.features.work import asynchronous

summarize = asynchronous(plans.summarize)
proofread = asynchronous(plans.proofread)
rewrite = asynchronous(plans.rewrite)
key_points = asynchronous(plans.key_points)
replies = asynchronous(plans.replies)
prioritize = asynchronous(plans.prioritize)
extract = asynchronous(plans.extract)
