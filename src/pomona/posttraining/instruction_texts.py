"""The words of instructions.py: what is asked for, about what, and how a condition is put.

Written for pomona. A form has the places {topic} and {other}. Conditions come in several wordings, so that
what is learnt is the condition and not its wording.
"""

from __future__ import annotations

TOPICS = (
    "a rainy market", "an old lighthouse", "the first day at a new school", "growing tomatoes on a balcony",
    "a lost umbrella", "night trains", "a small bakery", "learning to swim", "the colour green",
    "a chess game between friends", "keeping bees", "a power cut in winter", "a walk through the woods",
    "repairing a bicycle", "the sound of a piano", "moving to a new town", "a school garden", "cooking rice",
    "a long queue", "a letter from an aunt", "saving water at home", "a trip to the mountains", "street cats",
    "a broken clock", "early mornings", "the moon", "a museum of maps", "painting a fence", "a village fair",
    "drinking tea", "a cold lake", "a shop for used books", "playing the drums", "an empty theatre",
    "planting a tree", "writing a diary", "a delayed flight", "a storm at sea", "homemade bread",
    "a family photograph", "riding a horse", "a quiet library", "a football match", "the smell of coffee",
    "fixing a leaking tap", "a train station at noon", "sleeping well", "a blue door", "making friends",
    "a snowman", "a summer camp", "an island without cars", "a stubborn goat", "learning a language",
    "a birthday without cake", "the history of paper", "a kite on the beach", "an office plant",
    "a bus driver", "a picnic in the rain", "volcanoes", "a robot that cleans", "healthy breakfasts",
    "a neighbour who sings", "packing a suitcase", "a secret recipe", "a desert at night", "running a race",
    "how rivers begin", "an honest mistake", "a wooden boat", "the end of a holiday",
)  # fmt: skip

FORMS = (
    "Write a short text about {topic}.",
    "Tell me something about {topic}.",
    "Describe {topic} to a child.",
    "Write a few lines for a postcard about {topic}.",
    "Give advice to somebody who thinks about {topic}.",
    "What comes to your mind when you think of {topic}?",
    "Write a note to a friend about {topic}.",
    "Invent a small story about {topic}.",
    "Explain why people like {topic}.",
    "Write the beginning of a speech about {topic}.",
    "Compare {topic} with {other}.",
    "Write an advertisement that has to do with {topic}.",
    "Say what could go wrong with {topic}.",
    "Write a message that invites a colleague to talk about {topic}.",
    "List what you know about {topic}.",
    "Write a poem about {topic}.",
    "Write a question and an answer about {topic}.",
    "Report on {topic} as a newspaper would.",
)

WORDS = (
    "window", "river", "stone", "bright", "garden", "slowly", "paper", "music", "bread", "winter", "friend",
    "silver", "market", "yellow", "mountain", "quiet", "letter", "bridge", "cloud", "summer", "honey",
    "travel", "kitchen", "lamp", "forest", "promise", "weather", "button", "village", "ocean",
)  # fmt: skip

ENDINGS = (
    "That is all I know.", "See you on Sunday.", "Please write back soon.", "And so it ended.",
    "Thank you for reading.", "Now it is your turn.", "Nothing more to say.", "Have a good evening.",
)  # fmt: skip

OPENINGS = ("Here we go:", "My dear reader", "Once upon a time", "Good news", "To begin with", "Listen")

# Check -> wordings.
CONDITIONS: dict[str, tuple[str, ...]] = {
    "no_comma": (
        "Use no comma anywhere.",
        "Do it without a single comma.",
        "Commas are forbidden here.",
    ),
    "lowercase": (
        "Write everything in small letters, without any capital.",
        "Only lowercase letters, please.",
        "Do not let one capital letter slip in.",
    ),
    "uppercase": (
        "WRITE IT ALL IN CAPITALS, every letter.",
        "Use capital letters only, from the first to the last.",
        "Every letter has to be uppercase.",
    ),
    "quotation": (
        "Put double quotation marks around all of it.",
        "The whole text must stand between double quotes.",
        "Begin and end with a double quotation mark.",
    ),
    "title": (
        "Put a heading on top, in double angle brackets like <<this>>.",
        "It needs a title between << and >>.",
    ),
    "bullets": (
        'Make it a list of exactly {count} points, each on a line that starts with "* ".',
        "Use exactly {count} bullet lines; a bullet line begins with a star and a space.",
    ),
    "highlights": (
        "Emphasise {count} or more phrases by setting them between stars, *so*.",
        "Mark at least {count} places with asterisks on both sides, *like here*.",
    ),
    "placeholders": (
        "Leave {count} or more gaps to fill in, written in square brackets like [name].",
        "Include no fewer than {count} placeholders such as [date] in square brackets.",
    ),
    "postscript": (
        "Add a postscript at the end that starts with {marker}",
        "Close with an afterthought introduced by {marker}",
    ),
    "json_format": (
        "Give the entire answer as JSON.",
        "Answer with one valid JSON object and nothing else.",
    ),
    "keywords": (
        "Make sure that the words {listed} occur.",
        "Use these words: {listed}.",
    ),
    "forbidden_words": (
        "Avoid the words {listed}.",
        "These words must not occur: {listed}.",
    ),
    "keyword_count": (
        "Say the word {word} {relation} {count} times.",
        "The word {word} has to come up {relation} {count} times.",
    ),
    "letter_count": (
        "The letter {letter} must occur {relation} {count} times.",
        "Use the letter {letter} {relation} {count} times.",
    ),
    "capital_words": (
        "Write {relation} {count} words entirely in capital letters.",
        "Words in all capitals: {relation} {count}.",
    ),
    "words": (
        "Your text should have {relation} {count} words.",
        "Length: {relation} {count} words.",
    ),
    "sentences": (
        "Write {relation} {count} sentences.",
        "The number of sentences is to be {relation} {count}.",
    ),
    "paragraphs": (
        "Divide it into {count} paragraphs by lines of three stars: ***",
        "There should be {count} paragraphs with the mark *** between them.",
    ),
    "sections": (
        "Give it {count} parts and head each of them with {name} and its number.",
        "Structure: {count} parts that are called {name} 1 and so on.",
    ),
    "ends_with": (
        "Let the very last words be: {phrase}",
        "Finish with exactly this and write nothing after it: {phrase}",
    ),
    "starts_with": (
        "Start with the words: {phrase}",
        "The first words must be these: {phrase}",
    ),
    "two_responses": (
        "Give two different versions and put ****** (six stars) between them.",
        "I want two unlike answers, parted by six stars: ******",
    ),
}
