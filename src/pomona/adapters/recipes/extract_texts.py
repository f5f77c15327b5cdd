"""Texts with contacts and events for `extract`, as templates. Written for pomona.

Slots of a contact n: {nameN}, {mailN}, {telN}, {firmN}; of an event n: {titleN}, {dateN}, {timeN}, {placeN}.
What a template names is what is extracted: a contact whose mail is not there has an empty one. {job}, {street},
{money} and {word} are there to be left out. Every fourth template is held out.
"""

from __future__ import annotations

TITLES = (
    "Budget review|Summer party|Product launch|Team workshop|Board meeting|Open day|Jazz night|Book fair|"
    "Safety training|Project kickoff|Charity run|Wine tasting|Design review|Parents' evening|City tour|"
    "Annual conference|Press briefing|Cooking class"
).split("|")
PLACES = (
    "Town Hall|Riverside Centre|Room 204|Hotel Astoria|Central Library|Harbour Stage|Studio 5|Grand Cafe|"
    "Conference Room B|Old Brewery|Sports Park|Museum of Light"
).split("|")

TEMPLATES: tuple[str, ...] = (
    "Hi,\n\nplease get in touch with {name0} from {firm0} about the samples. The mail address is {mail0}, and by "
    "phone it is {tel0}.\n\nThanks",
    "{name0}\n{job}\n{firm0}\n{street}\nT {tel0}\n{mail0}",
    "You are invited!\n\n{title0}\nWhen: {date0}, {time0}\nWhere: {place0}\n\nPlease answer to {mail0}.\n{name0}",
    "Dear all,\n\nthe {title0} takes place on {date0} at {time0} in {place0}. Questions go to {name0}, {tel0}.\n\n"
    "Kind regards",
    "New contact saved: {name0}, {firm0}, mobile {tel0}. No mail address was given.",
    "Reminder: {title0} starts at {time0} on {date0}. Afterwards there is the {title1} at {time1} in {place1}.",
    "From: {name0} <{mail0}>\nTo: {name1} <{mail1}>\nSubject: {title0}\n\nCan we meet on {date0} at {time0} in "
    "{place0}? It will cost about {money}.\n\n{name0}",
    "Speakers: {name0} ({firm0}) and {name1} ({firm1}). Tickets for the {title0} on {date0} cost {money}; "
    "doors of {place0} open at {time0}.",
    "It was a pleasure to talk at the fair. My colleague {name0} will call you. Best regards, {name1}, {job}, "
    "{firm1}, {mail1}",
    "Lost your badge? Ask {name0} at the desk or ring {tel0}. The next {title0} is on {date0}.",
    "Programme\n{date0}  {time0}  {title0}  {place0}\n{date1}  {time1}  {title1}  {place1}",
    "Hello, this is {name0} of {firm0}. I wanted to confirm our {title0} on {date0} at {time0}. If something "
    "comes up, write to {mail0}.",
    "Team list:\n- {name0}, {mail0}, {tel0}\n- {name1}, {mail1}, {tel1}\nPlease check that your data is right.",
    "The {title0} has been moved: not {word}, but {date0}, still in {place0}. {name0} knows more.",
    "Thank you for your order at {firm0}. Your contact is {name0}. You reach us under {tel0} or {mail0}. The amount of "
    "{money} will be charged next week.",
    "Minutes: {name0} presents the numbers. Next steps: {title0} in {place0} on {date0}, {title1} on {date1}. "
    "{name1} from {firm1} joins by phone.",
    "Nothing to report from last week. The weather was fine, and the new coffee machine works.",
    "Please forward this to {name0} ({mail0}).",
    "Doctor's office: your appointment is on {date0} at {time0}. To change it, call {tel0}.\n{name0}, {job}",
    "We met {name0}, {job} at {firm0}, and {name1}, who runs {firm1}. Both come to the {title0} in {place0}.",
    "SAVE THE DATE\n{date0}\n{title0}\n{place0}\nOrganised by {firm0}",
    "Hey, are you going to the {title0} on {date0}? {name0} has two tickets, her number is {tel0}.",
    "For press questions: {name0}, {firm0}, tel. {tel0}, {mail0}. The {title0} begins at {time0} in {place0} on "
    "{date0}.",
    "The meeting was short. We agreed on {money} and will talk again.",
)
HELD_OUT_SHARE = 4

# other schemas that a user may give, with templates: (keys, template); the keys' values are the slots' texts
RECORDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("product", "price", "shop"), "The {product} costs {price} at {shop}, which is a fair price."),
    (("product", "price"), "SALE: {product} now only {price}! While stocks last."),
    (("order_number", "delivery_date"), "Your order {order_number} will be delivered on {delivery_date}."),
    (("sender", "amount", "due_date"), "{sender} asks you to pay {amount} by {due_date}."),
    (("flight", "departure", "gate"), "Flight {flight} departs at {departure} from gate {gate}."),
    (("patient", "doctor", "date"), "{patient} sees Dr {doctor} on {date} for the yearly check."),
    (("street", "city"), "We have moved! Our new office is at {street} in {city}."),
    (("product", "shop", "order_number"), "{shop} has sent your {product} (order {order_number})."),
    (("sender", "city", "date"), "Greetings from {city}! {sender} wrote this card on {date}."),
    (("flight", "city", "departure"), "Boarding for {city}: flight {flight}, departure {departure}."),
    (("amount", "shop", "date"), "Receipt\n{shop}\n{date}\nTotal {amount}\nThank you!"),
    (("tenant", "street", "amount"), "{tenant} rents the flat at {street} for {amount} a month."),
)
PRODUCTS = (
    "desk lamp|steel kettle|wool blanket|bicycle pump|garden chair|coffee grinder|rain jacket|board game|"
    "hiking boots|frying pan|phone case|pocket radio"
).split("|")
