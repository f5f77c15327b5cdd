"""The scenes' words (scenes.py says what the slots mean). Written for pomona."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scene:
    name: str
    subject: str
    bodies: tuple[str, ...]
    one_line: str
    sentences: tuple[str, str, str]
    points: tuple[str, ...]
    questions: tuple[str, ...]
    replies: tuple[str, ...]


SCENES: tuple[Scene, ...] = (
    Scene(
        "meeting_moved",
        "Meeting on {day}",
        (
            "the meeting with {firm} that was planned for {day} at {time} has to move. {x} is "
            "travelling and cannot be back before {day2}. Could we meet on {day2} at {time2} "
            "instead, in {room}? Please tell me by tomorrow, then I will send the new invitation.",
            "we need another slot for our {day} meeting with {firm} at {time}, because {x} is away "
            "until {day2}. My suggestion is {day2}, {time2}, in {room}. Does that work for you? If "
            "I hear from you by tomorrow I can send the new invitation in time.",
        ),
        "{a} wants to move the {firm} meeting from {day} to {day2} at {time2}.",
        (
            "The meeting with {firm} on {day} has to move because {x} is away until {day2}.",
            "{a} suggests {day2} at {time2} in {room}.",
            "An answer is needed by tomorrow.",
        ),
        (
            "The {firm} meeting on {day} has to move.",
            "{x} is away until {day2}.",
            "New proposal: {day2} at {time2} in {room}.",
            "Answer by tomorrow.",
        ),
        ("Can you meet on {day2} at {time2}?",),
        (
            "Yes, {day2} at {time2} works for me.",
            "Sorry, I cannot make {day2}. Is there another time?",
            "Let me check my calendar and tell you tomorrow.",
        ),
    ),
    Scene(
        "invoice",
        "Open invoice from {firm}",
        (
            "we have not received your payment of {money} for the last order from {firm} yet. The "
            "invoice was due on {day}. Could you look into it? If the money is already on its way, "
            "please ignore this mail. Otherwise we ask you to pay before {day2}.",
            "this is a friendly reminder from {firm}: the invoice over {money} was due on {day}, "
            "and nothing has arrived. Could you check what happened? Please pay before {day2}, "
            "unless the money is on its way.",
        ),
        "{firm} reminds of an unpaid invoice of {money}, to be paid before {day2}.",
        (
            "An invoice of {money} from {firm} was due on {day} and has not been paid.",
            "{a} asks {b} to look into it.",
            "It should be paid before {day2}.",
        ),
        (
            "Invoice of {money} from {firm} is open.",
            "It was due on {day}.",
            "Payment is expected before {day2}.",
        ),
        ("Can you check what happened with the payment?",),
        (
            "Sorry about that, I will pay today.",
            "The money is already on its way.",
            "Could you send me the invoice again?",
        ),
    ),
    Scene(
        "dinner",
        "Dinner on {day}?",
        (
            "{x} and I are cooking on {day} and would love to have you over. We eat at {time2}. Do "
            "you come, and is there anything that you do not eat? You need not bring a thing, "
            "perhaps a dessert if you feel like it.",
            "would you like to come for dinner on {day}? {x} will be here too, and we start at "
            "{time2}. Tell me whether there is something you do not eat. No need to bring "
            "anything, but a dessert is welcome.",
        ),
        "{a} invites {b} to dinner on {day} at {time2}.",
        (
            "{a} and {x} invite {b} to dinner on {day} at {time2}.",
            "They would like to know whether there is something that {b} does not eat.",
            "A dessert is welcome but not needed.",
        ),
        (
            "Dinner on {day} at {time2} with {a} and {x}.",
            "Say what you do not eat.",
            "A dessert is welcome.",
        ),
        (
            "Do you come to dinner on {day}?",
            "Is there anything you do not eat?",
        ),
        (
            "I would love to come! I eat everything.",
            "Thank you, but I am busy on {day}.",
            "Can I tell you tomorrow?",
        ),
    ),
    Scene(
        "delivery_delay",
        "Your order at {firm}",
        (
            "your order of {n} chairs at {firm} will be late. A part is missing, and our supplier "
            "in {city} can send it on {day} at the earliest. We now plan to deliver on {day2}. Do "
            "you want to wait, or shall we cancel? For the trouble we take {money} off the price.",
            "I am sorry to say that {firm} cannot deliver the {n} chairs on time: our supplier in "
            "{city} sends a missing part on {day}. The new date is {day2}. Should we cancel, or "
            "will you wait? We reduce the price by {money} in any case.",
        ),
        "The order of {n} chairs at {firm} is delayed until {day2}, with {money} off.",
        (
            "{firm} cannot deliver the {n} chairs on time because a part is missing.",
            "The new delivery date is {day2}, and {money} is taken off the price.",
            "{a} asks whether {b} wants to wait or cancel.",
        ),
        (
            "Order of {n} chairs is late.",
            "A part comes from {city} on {day}.",
            "New delivery date: {day2}.",
            "{money} off the price.",
        ),
        ("Do you want to wait or cancel the order?",),
        (
            "I will wait, {day2} is fine.",
            "Please cancel the order.",
            "Can you deliver a part of it earlier?",
        ),
    ),
    Scene(
        "report_feedback",
        "Comments on your report",
        (
            "I read your report on the {city} project, and I like it. Two things should change "
            "before it goes to {x}: the costs on page {n} do not include travel, and the summary "
            "is too long. Can you send me a new version by {day}? The presentation is on {day2} at "
            "{time}.",
            "thank you for the report about the {city} project, it is good work. Before {x} gets "
            "it, please add travel to the costs on page {n} and shorten the summary. Would {day} "
            "be possible for the new version? We present on {day2} at {time}.",
        ),
        "{a} likes the {city} report but wants changes by {day}.",
        (
            "{a} likes the report on the {city} project.",
            "The costs on page {n} need travel added, and the summary should be shorter.",
            "The new version is due on {day}, before the presentation on {day2} at {time}.",
        ),
        (
            "Add travel to the costs on page {n}.",
            "Shorten the summary.",
            "New version by {day}.",
            "Presentation on {day2} at {time}.",
        ),
        ("Can you send a new version by {day}?",),
        (
            "Thanks, you will have it by {day}.",
            "{day} is tight, could I have one more day?",
            "How short should the summary be?",
        ),
    ),
    Scene(
        "job_interview",
        "Interview at {firm}",
        (
            "thank you for applying at {firm}. We would like to invite you to an interview on "
            "{day} at {time} in our office in {city}. You will talk to {x}, who leads the team, "
            "for about {n} minutes. Please bring your references. Can you confirm the date?",
            "good news: {firm} would like to meet you. Could you come to our office in {city} on "
            "{day} at {time}? {x}, the head of the team, will talk with you for about {n} minutes. "
            "Please confirm, and bring your references.",
        ),
        "{firm} invites {b} to an interview on {day} at {time} in {city}.",
        (
            "{firm} invites {b} to an interview on {day} at {time} in {city}.",
            "The talk with {x} takes about {n} minutes.",
            "{b} should confirm the date and bring references.",
        ),
        (
            "Interview at {firm} on {day} at {time} in {city}.",
            "Talk with {x}, about {n} minutes.",
            "Bring references.",
            "Confirm the date.",
        ),
        ("Can you confirm {day} at {time}?",),
        (
            "Thank you, I confirm {day} at {time}.",
            "I am not free on {day}, is another date possible?",
            "Could the interview be by video?",
        ),
    ),
    Scene(
        "flat_repair",
        "Heating in your flat",
        (
            "a plumber from {firm} will come on {day} between {time} and {time2} to repair the "
            "heating. Somebody has to be at home. Will you be there, or may {x} from next door let "
            "him in? The water will be off for about an hour.",
            "the heating gets repaired on {day}, between {time} and {time2}, by a plumber from "
            "{firm}. Can you be at home then, or should {x} next door have the key? Please expect "
            "an hour without water.",
        ),
        "The heating is repaired on {day} between {time} and {time2}; somebody must be home.",
        (
            "A plumber from {firm} repairs the heating on {day} between {time} and {time2}.",
            "Somebody must be at home, or {x} from next door lets him in.",
            "The water will be off for about an hour.",
        ),
        (
            "Heating repair on {day} between {time} and {time2}.",
            "Somebody must be at home.",
            "No water for about an hour.",
        ),
        ("Will you be at home on {day}?",),
        (
            "Yes, I will be at home.",
            "I am away, please let {x} open the door.",
            "Could he come on another day?",
        ),
    ),
    Scene(
        "school_trip",
        "School trip to {city}",
        (
            "our class goes to {city} on {day}. We meet at the school gate at {time} and are back "
            "by {time2}. The trip costs {money} for each child, to be paid until {day2}. We still "
            "need {n} parents to come along: would you help? Please give your child a lunch and a "
            "raincoat.",
            "on {day} the class travels to {city}, leaving from the school gate at {time} and "
            "returning by {time2}. Please pay the {money} until {day2}, and pack a lunch and a "
            "raincoat. Could you come along? We look for {n} more parents.",
        ),
        "The class goes to {city} on {day}; {money} is due until {day2}.",
        (
            "The class goes to {city} on {day}, from {time} to {time2}.",
            "It costs {money} for each child, due until {day2}.",
            "The school looks for {n} parents to come along.",
        ),
        (
            "Trip to {city} on {day}, {time} to {time2}.",
            "Pay {money} until {day2}.",
            "Pack a lunch and a raincoat.",
            "{n} parents are needed.",
        ),
        ("Would you come along to help?",),
        (
            "I am happy to come along.",
            "Sorry, I have to work on {day}.",
            "How can I pay the {money}?",
        ),
    ),
    Scene(
        "server_problem",
        "Shop was slow this morning",
        (
            "the web shop of {firm} was very slow between {time} and {time2} today, and about {n} "
            "orders were lost. The cause was a full disk; {x} has made room, and everything works "
            "again. Shall we buy a larger disk for {money}? I would like to do it on {day}.",
            "a short report: from {time} to {time2} today the {firm} shop was slow because a disk "
            "was full. We lost about {n} orders. {x} made room, so it works now. Do you agree to a "
            "larger disk for {money}? It could be in place on {day}.",
        ),
        "The {firm} shop lost about {n} orders to a full disk; {a} proposes a larger one for {money}.",
        (
            "The web shop of {firm} was slow from {time} to {time2} because a disk was full.",
            "About {n} orders were lost, and it works again.",
            "{a} asks to buy a larger disk for {money} on {day}.",
        ),
        (
            "The shop was slow from {time} to {time2}.",
            "About {n} orders were lost.",
            "Cause: a full disk, fixed by {x}.",
            "Proposal: a larger disk for {money}.",
        ),
        ("Shall we buy a larger disk for {money}?",),
        (
            "Yes, please buy it.",
            "Let us wait with that until next month.",
            "Is there a cheaper way?",
        ),
    ),
    Scene(
        "lift_to_city",
        "Driving to {city}",
        (
            "I drive to {city} on {day} and have two free seats. {x} takes one of them. Do you "
            "want the other? I leave at {time} from the station and come back on {day2}. If we "
            "share the fuel it is {money} each.",
            "do you need a lift to {city}? I go on {day} at {time} from the station, with {x}, and "
            "one seat is left. The way back is on {day2}. Fuel would be {money} for each of us.",
        ),
        "{a} offers a seat to {city} on {day} at {time} for {money}.",
        (
            "{a} drives to {city} on {day} at {time} and has a free seat.",
            "{x} comes along, and the way back is on {day2}.",
            "The fuel is {money} each.",
        ),
        (
            "Drive to {city} on {day} at {time} from the station.",
            "Back on {day2}.",
            "{money} each for fuel.",
        ),
        ("Do you want the free seat?",),
        (
            "Yes please, I will be at the station.",
            "Thanks, but I take the train.",
            "Can I tell you on the day before?",
        ),
    ),
    Scene(
        "new_colleague",
        "{x} joins us on {day}",
        (
            "{x} starts in our team on {day} and comes from {firm} in {city}. Could you show the "
            "office and explain the ticket system in the first week? We all have breakfast "
            "together in {room} at {time}. The laptop is ordered and arrives on {day2}.",
            "on {day} we welcome {x}, who comes from {firm} in {city}. There is a breakfast for "
            "everybody at {time} in {room}. Would you take care of the first week, that is the "
            "tour and the ticket system? The laptop comes on {day2}.",
        ),
        "{x} joins the team on {day}, and {a} asks {b} to help in the first week.",
        (
            "{x} from {firm} joins the team on {day}.",
            "{a} asks {b} to show the office and explain the ticket system.",
            "There is a breakfast at {time} in {room}.",
        ),
        (
            "{x} starts on {day}.",
            "Show the office and the ticket system.",
            "Breakfast at {time} in {room}.",
            "The laptop arrives on {day2}.",
        ),
        ("Could you help {x} in the first week?",),
        (
            "Sure, I will take care of it.",
            "I am away that week, perhaps somebody else?",
            "Does {x} have an account already?",
        ),
    ),
    Scene(
        "club_room",
        "Room for the chess club",
        (
            "the chess club cannot use {room} on {day}, because {firm} has booked it. The "
            "caretaker offers us the small hall, but only until {time2}. Shall we take it, or play "
            "on {day2}? There will be {n} of us. {x} brings the boards.",
            "bad luck: {firm} has booked {room} on {day}, so the chess club needs another place. "
            "We could have the small hall until {time2}, or move to {day2}. Which do you prefer? "
            "{n} people have signed up, and {x} brings the boards.",
        ),
        "The chess club cannot use {room} on {day} and must choose another hall or {day2}.",
        (
            "{firm} has booked {room} on {day}, so the chess club needs another place.",
            "It can have the small hall until {time2} or move to {day2}.",
            "{n} people take part, and {x} brings the boards.",
        ),
        (
            "{room} is not free on {day}.",
            "Small hall until {time2}, or {day2}.",
            "{n} players; {x} brings the boards.",
        ),
        ("Shall we take the small hall or play on {day2}?",),
        (
            "Let us take the small hall.",
            "I prefer {day2}.",
            "Both are fine with me.",
        ),
    ),
    Scene(
        "insurance_claim",
        "Your claim at {firm}",
        (
            "we have looked at your claim for the broken window. {firm} pays {money}, which you "
            "will have by {day}. For the rest we need a bill from the glazier and {n} photos. "
            "Could you send them to {x} before {day2}? Without them the case will be closed.",
            "about the broken window: {firm} will pay you {money} by {day}. Could you send the "
            "glazier's bill and {n} photos to {x}? We need them before {day2} for the rest, "
            "otherwise the case is closed.",
        ),
        "{firm} pays {money} for the window and needs a bill and photos before {day2}.",
        (
            "{firm} pays {money} for the broken window by {day}.",
            "For the rest it needs the glazier's bill and {n} photos.",
            "They go to {x} before {day2}, or the case is closed.",
        ),
        (
            "{money} will be paid by {day}.",
            "Send the bill and {n} photos to {x}.",
            "Deadline: before {day2}.",
        ),
        ("Can you send the bill and the photos before {day2}?",),
        (
            "I will send everything tomorrow.",
            "The bill has not come yet, can I have more time?",
            "Which photos do you need?",
        ),
    ),
    Scene(
        "holiday_cover",
        "My holiday from {day}",
        (
            "I am on holiday from {day} until {day2}. Could you look after two things meanwhile? "
            "The figures for {firm} have to go out before {time} on the first day, and {x} may "
            "call about the offer of {money}. Everything is in the shared folder. In an emergency "
            "you can ring me.",
            "from {day} until {day2} I am away, and I need some cover. Would you send the figures "
            "to {firm} before {time} on the first day, and talk to {x} should a call about the "
            "{money} offer come? You find all of it in the shared folder, and you can ring me in "
            "an emergency.",
        ),
        "{a} is on holiday from {day} until {day2} and asks {b} for cover.",
        (
            "{a} is on holiday from {day} until {day2}.",
            "{b} should send the figures to {firm} and talk to {x} about the {money} offer.",
            "Everything is in the shared folder.",
        ),
        (
            "{a} is away from {day} until {day2}.",
            "Send the figures to {firm} before {time}.",
            "{x} may call about the {money} offer.",
        ),
        ("Could you look after the figures and the call?",),
        (
            "Of course, enjoy your holiday!",
            "I can do the figures, but not the call.",
            "What should I tell {x}?",
        ),
    ),
    Scene(
        "garden_day",
        "Garden day on {day}",
        (
            "on {day} we tidy up the shared garden, from {time} to {time2}. {n} neighbours have "
            "said yes so far. {x} brings rakes, and {firm} gives us plants for {money}. Can you "
            "come, and do you have a wheelbarrow? If it rains we do it on {day2}.",
            "the garden needs us: join us on {day} between {time} and {time2}. We are {n} so far, "
            "{x} has rakes, and the plants for {money} come from {firm}. Will you be there, and "
            "could you bring a wheelbarrow? Should it rain, we meet on {day2}.",
        ),
        "{a} asks for help in the garden on {day} from {time} to {time2}.",
        (
            "The neighbours tidy up the garden on {day} from {time} to {time2}.",
            "{a} asks {b} to come and to bring a wheelbarrow.",
            "If it rains it is moved to {day2}.",
        ),
        (
            "Garden day on {day}, {time} to {time2}.",
            "A wheelbarrow is needed.",
            "Rain date: {day2}.",
        ),
        (
            "Can you come on {day}?",
            "Do you have a wheelbarrow?",
        ),
        (
            "I will come and bring a wheelbarrow.",
            "I will come, but I have no wheelbarrow.",
            "Sorry, I cannot come this time.",
        ),
    ),
    Scene(
        "lost_bag",
        "Your bag was found",
        (
            "a blue bag with your name was found in {room} in {city} on {day}. {x} keeps it at the "
            "desk of {firm}. You can get it until {day2}, between {time} and {time2}; please bring "
            "a document with your photo. Can you tell me what is in it, so that we are sure it is "
            "yours?",
            "we found a blue bag with your name, on {day}, in {room} in {city}. It is at the desk "
            "of {firm}, where {x} looks after it until {day2}, between {time} and {time2}. Please "
            "bring a document with a photo. What is in the bag? We want to be sure that it is "
            "yours.",
        ),
        "A blue bag of {b} was found and can be picked up at {firm} until {day2}.",
        (
            "A blue bag with the name of {b} was found in {city} on {day}.",
            "It can be picked up at the desk of {firm} until {day2}.",
            "{a} asks what is in it.",
        ),
        (
            "Blue bag found in {city}.",
            "Pick it up at {firm} until {day2}, {time} to {time2}.",
            "Bring a document with a photo.",
        ),
        ("What is in the bag?",),
        (
            "There is an umbrella and a book in it.",
            "Thank you, I will come tomorrow.",
            "That is not my bag.",
        ),
    ),
    Scene(
        "price_question",
        "Question about your offer",
        (
            "thank you for the offer of {firm}. Before we decide I have two questions. Does the "
            "price of {money} include the delivery to {city}? And is it cheaper if we take {n} "
            "pieces? {x} wants to order on {day}, so an answer before then would help.",
            "we like the offer of {firm}, but two things are open. Is the delivery to {city} part "
            "of the {money}? And what is the price for {n} pieces? It would be good to know before "
            "{day}, when {x} wants to order.",
        ),
        "{a} asks about delivery and a lower price for {n} pieces before {day}.",
        (
            "{a} has two questions about the offer of {firm}.",
            "They are about the delivery to {city} and the price for {n} pieces.",
            "{x} wants to order on {day}.",
        ),
        (
            "Is the delivery to {city} included in {money}?",
            "What is the price for {n} pieces?",
            "{x} orders on {day}.",
        ),
        (
            "Is the delivery to {city} included?",
            "Is it cheaper for {n} pieces?",
        ),
        (
            "Yes, the delivery is included.",
            "The delivery is not included, I will send you a price.",
            "I will ask and answer before {day}.",
        ),
    ),
    Scene(
        "running_group",
        "Run on {day}",
        (
            "the running group meets on {day} at {time} in front of {room}. This time we go {n} "
            "kilometres along the river, slowly enough for everybody. {x} is ill and cannot lead. "
            "Would you do it? Afterwards there is coffee at {time2}.",
            "on {day} at {time} we run again, {n} kilometres along the river at an easy pace, from "
            "{room}. Since {x} is ill, we need somebody to lead: could you? Coffee is at {time2}.",
        ),
        "The running group meets on {day} at {time}, and {a} asks {b} to lead.",
        (
            "The running group meets on {day} at {time} for {n} kilometres along the river.",
            "{x} is ill, so {a} asks {b} to lead.",
            "There is coffee afterwards at {time2}.",
        ),
        (
            "Run on {day} at {time}, {n} kilometres.",
            "{x} is ill; a leader is needed.",
            "Coffee at {time2}.",
        ),
        ("Would you lead the group?",),
        (
            "Yes, I can lead.",
            "I come, but somebody else should lead.",
            "Sorry, I cannot run this week.",
        ),
    ),
    Scene(
        "thank_you",
        "Thank you",
        (
            "the evening in {city} was wonderful, and {x} still talks about the music. Thank you "
            "for the tickets! I found your scarf under my coat. Shall I send it to you, or do we "
            "meet on {day} anyway? I owe you {money} for the taxi as well.",
            "thank you so much for the tickets in {city}. {x} loved the music, and so did I. By "
            "the way, your scarf is here. Do we meet on {day}, or shall I send it? And you still "
            "get {money} from me for the taxi.",
        ),
        "{a} thanks for the tickets in {city} and has the scarf of {b}.",
        (
            "{a} thanks {b} for the tickets in {city}.",
            "{a} has the scarf and asks whether to send it or to meet on {day}.",
            "{a} owes {money} for the taxi.",
        ),
        (
            "Thanks for the tickets.",
            "The scarf is with {a}.",
            "{a} owes {money} for the taxi.",
        ),
        ("Shall {a} send the scarf, or do we meet on {day}?",),
        (
            "Let us meet on {day}.",
            "Please send it, thank you.",
            "Keep the money, it was my treat.",
        ),
    ),
    Scene(
        "workshop",
        "Workshop at {firm}",
        (
            "{firm} holds a workshop on safe driving on {day}, from {time} to {time2}, in {room}. "
            "It costs {money}, and there are {n} places. {x} took part last year and learned a "
            "lot. Shall I book for both of us? I have to know by {day2}.",
            "shall we go to the workshop on safe driving at {firm}? It is on {day} from {time} to "
            "{time2} in {room}, and costs {money}. {x} found it very useful last year. There are "
            "only {n} places, so tell me by {day2}, then I book for both of us.",
        ),
        "{a} offers to book a workshop on safe driving on {day} and needs to know by {day2}.",
        (
            "{firm} holds a workshop on safe driving on {day} from {time} to {time2}.",
            "It costs {money} and has {n} places.",
            "{a} would book for both and needs to know by {day2}.",
        ),
        (
            "Workshop on safe driving on {day}, {time} to {time2}.",
            "{money}, {n} places.",
            "Say by {day2} whether to book.",
        ),
        ("Shall {a} book for both of us?",),
        (
            "Yes, please book for me too.",
            "No, thank you, I have no time.",
            "Can I decide on the last day?",
        ),
    ),
)
