"""Notifications with what they come down to, and whether they are urgent: something is lost if nobody looks at
it within the hour (safety, money, somebody waiting). The last few of each kind are held out."""

from __future__ import annotations

from dataclasses import dataclass

from pomona.adapters.recipes.names import CITIES, World

# app | text | gist; {a}, {b} are people, {t} a time, {d} a day, {m} an amount, {c} a city, {f} a firm
_URGENT = """
Bank|Unusual payment of {m} to {f} detected. Reply within 30 minutes if this was not you.|unusual payment of {m} to {f}
Messages|{a}: I'm at the front door, nobody answers. Can you open?|{a} is waiting at the front door
Calendar|Your interview with {f} starts in 15 minutes.|interview with {f} starts in 15 minutes
Smart Home|Smoke detected in the kitchen. Leave the house and call for help.|smoke detected in the kitchen
School|{a} has a fever and needs to be picked up now. Please call the office.|{a} has a fever and must be picked up
Airline|Gate change: your flight to {c} now boards at gate 14 and closes at {t}.|flight to {c} boards at gate 14, closing at {t}
Monitoring|Production database is down. Customers cannot log in.|production database is down
Messages|{a}: The car broke down on the motorway with {b} in it, please ring me right away.|{a}'s car broke down with {b} in it
Health|Your heart rate has been above 150 for ten minutes while you seem to be resting.|heart rate above 150 while resting
Weather|Flash flood warning for {c}. Move to higher ground immediately.|flash flood warning for {c}
Email|{a}: The client needs the signed contract before {t} today or the deal is off.|client needs the signed contract before {t} today
Security|Someone just signed in to your account from {c}. If it was not you, secure it now.|someone signed in from {c}
Taxi|Your driver has arrived and will wait five minutes.|driver has arrived and waits five minutes
Messages|{a}: Mum was taken to hospital, we are on our way there now.|{a} says Mum was taken to hospital
Smart Home|Water leak detected in the basement.|water leak in the basement
Pharmacy|Recall: stop taking the tablets you collected on {d} and call us today.|recall of the tablets collected on {d}
Monitoring|Disk of the mail server is full. Mail is being rejected.|mail server disk is full
Messages|{a}: Where are you? The meeting with {f} has started and they ask for you.|{a} says the meeting with {f} has started
Energy|Your power will be cut at {t} today unless {m} is paid.|power will be cut at {t} unless {m} is paid
Email|{a}: Please cancel the order to {f} before {t}, the amount is wrong.|{a} asks to cancel the order to {f} before {t}
Bank|Your card was declined three times in {c} within five minutes.|card declined three times in {c}
Smart Home|The back door was opened while nobody is at home.|back door opened while nobody is home
Train|Your train to {c} leaves from platform 3 in six minutes.|train to {c} leaves in six minutes
Messages|{a}: I locked myself out and the stove is on, do you have the key?|{a} is locked out with the stove on
Clinic|Your test result needs attention. The doctor asks you to call back now.|doctor asks for a call about a test result
Security|Your backup codes were just used to change the password.|backup codes were used to change the password
"""
_CALM = """
News|Ten recipes for a rainy weekend.|recipes for a rainy weekend
Photos|You have a new memory: a day in {c}.|a new memory of a day in {c}
Shop|Everything for the garden is 20% off until {d}.|garden sale until {d}
Messages|{a}: Haha, that was a good one!|{a} liked a joke
Social|{a} and {b} liked your photo.|{a} and {b} liked a photo
Parcel|Your parcel from {f} will arrive on {d}.|parcel from {f} arrives on {d}
Email|{a}: The notes of last week's meeting are in the shared folder.|{a} shared the notes of last week's meeting
Calendar|Team lunch next {d} at {t}.|team lunch next {d} at {t}
Fitness|You reached your goal of 8,000 steps. Well done!|step goal of 8,000 reached
Music|{f} released a new playlist for you.|new playlist from {f}
App Store|12 apps were updated overnight.|12 apps were updated
Bank|Your statement for last month is ready.|last month's statement is ready
Messages|{a}: No rush, but do you still have my blue book?|{a} asks about a blue book, no rush
Games|Your energy is full again. Come back and play!|game energy is full
Email|{a}: Looking forward to seeing you in {c} next month.|{a} looks forward to next month in {c}
Library|Two books are due on {d} in two weeks.|two books due in two weeks
Travel|Prices to {c} have dropped by {m}.|prices to {c} dropped by {m}
Social|{a} started following you.|{a} is a new follower
Podcast|A new episode about the history of {c} is out.|new episode about the history of {c}
Email|{f}: Our opening hours change slightly next spring.|{f} changes its opening hours next spring
Messages|{a}: Thanks again for the lovely evening!|{a} says thanks for the evening
Weather|Mild and cloudy in {c} tomorrow.|mild and cloudy in {c} tomorrow
Cleaning|The robot has finished the living room.|living room is cleaned
Email|{a}: FYI, the printer on the second floor has a new name.|{a} says the printer has a new name
Shop|You left something in your basket at {f}.|something left in the basket at {f}
Social|It is {a}'s birthday on {d}.|{a}'s birthday is on {d}
Streaming|A new season is available from {d}.|new season from {d}
Messages|{a}: I'll bring the photos when we meet next month.|{a} brings the photos next month
Car|Your next service is due in 2,000 km.|car service due in 2,000 km
Survey|{f} would like to know how you liked your stay in {c}.|{f} asks about the stay in {c}
"""
HELD_OUT_SHARE = 4  # every fourth template


@dataclass(frozen=True)
class Notification:
    app: str
    text: str
    gist: str
    urgent: bool
    kind: str  # the gist before names were filled in: equal for notifications of one template

    @property
    def line(self) -> str:
        return f"{self.app}: {self.text}"


def _templates(table: str, held_out: bool) -> list[list[str]]:
    rows = [line.split("|") for line in table.strip().splitlines()]
    return [row for i, row in enumerate(rows) if (i % HELD_OUT_SHARE == HELD_OUT_SHARE - 1) == held_out]


def notification(world: World, urgent: bool | None = None) -> Notification:
    """One notification of templates and names that belong to the world's part."""
    if urgent is None:
        urgent = world.rng.random() < 0.4
    app, text, gist = world.rng.choice(_templates(_URGENT if urgent else _CALM, world.held_out))
    a, b = world.people(2)
    slots = {
        "a": a,
        "b": b,
        "t": world.time(),
        "d": world.day(),
        "m": world.amount(),
        "c": world.pick(CITIES),
        "f": world.firm(),
    }
    return Notification(app, text.format(**slots), gist.format(**slots), urgent, gist)


def stack(world: World) -> list[Notification]:
    """Two to five notifications of different templates."""
    found: dict[str, Notification] = {}
    size = world.rng.randint(2, 5)
    while len(found) < size:
        one = notification(world)
        found[one.kind] = one
    return list(found.values())
