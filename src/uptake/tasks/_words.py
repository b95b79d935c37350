"""The words and the forms of sentences of made-up worlds.

PERSON, VALUE and the names in WORDS stand for what is put in. Every value begins with a consonant,
so that "a VALUE" is English.
"""

from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


@dataclass(frozen=True, eq=False)
class Attribute:
    """Something a person has one of: what it may be, and how sentences state it, change it and ask for it."""

    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    updates: tuple[str, ...]
    questions: tuple[str, ...]


ATTRIBUTES = (
    Attribute(
        "trade",
        _words(
            "baker tailor farmer teacher doctor painter sailor lawyer printer soldier miner potter weaver "
            "carpenter butcher fisherman gardener shepherd hunter cook driver clerk banker judge priest "
            "poet singer dancer guard porter"
        ),
        (
            "PERSON earns a living as a VALUE.",
            "By trade PERSON is a VALUE.",
            "For years PERSON has worked as a VALUE.",
        ),
        (
            "PERSON has changed trade and is now a VALUE.",
            "PERSON gave up the old work and became a VALUE.",
        ),
        (
            "What is the trade of PERSON?",
            "What does PERSON do for a living?",
            "What work does PERSON do?",
        ),
    ),
    Attribute(
        "fruit",
        _words(
            "pear plum cherry peach lemon melon grape fig date berry banana mango lime quince nectarine "
            "strawberry raspberry blackberry cranberry pineapple tangerine coconut pomegranate"
        ),
        (
            "Of all fruit PERSON likes the VALUE best.",
            "The VALUE is the fruit that PERSON loves.",
            "There is no fruit PERSON would rather eat than the VALUE.",
        ),
        (
            "PERSON has tired of the old fruit and now likes the VALUE best.",
            "These days the VALUE is the fruit that PERSON loves.",
        ),
        (
            "Which fruit does PERSON like best?",
            "What is the favourite fruit of PERSON?",
            "What fruit does PERSON love?",
        ),
    ),
    Attribute(
        "pet",
        _words(
            "dog cat horse goat sheep pig cow duck goose hen rabbit mouse rat parrot pigeon raven fox "
            "wolf bear deer monkey snake lizard turtle frog tiger lion camel donkey hawk"
        ),
        (
            "PERSON keeps a VALUE at home.",
            "A VALUE lives in the house of PERSON.",
            "The animal that PERSON keeps is a VALUE.",
        ),
        (
            "PERSON has given the old animal away and now keeps a VALUE.",
            "Since last week PERSON keeps a VALUE instead.",
        ),
        (
            "Which animal does PERSON keep?",
            "What animal lives with PERSON?",
            "What is the pet of PERSON?",
        ),
    ),
    Attribute(
        "instrument",
        _words(
            "piano violin guitar flute drum trumpet horn harp cello clarinet fiddle banjo pipe bell lute "
            "trombone whistle bugle tuba zither"
        ),
        (
            "In the evening PERSON plays the VALUE.",
            "PERSON learnt to play the VALUE as a child.",
            "The VALUE is the instrument that PERSON plays.",
        ),
        (
            "PERSON has sold the old instrument and now plays the VALUE.",
            "PERSON has taken up the VALUE and plays nothing else.",
        ),
        (
            "Which instrument does PERSON play?",
            "What does PERSON play in the evening?",
            "What is the instrument of PERSON?",
        ),
    ),
    Attribute(
        "colour",
        _words(
            "red blue green yellow black white brown grey purple pink silver gold scarlet crimson violet "
            "turquoise beige cream copper lilac"
        ),
        (
            "The door of PERSON is painted VALUE.",
            "PERSON painted the front door VALUE.",
            "Everybody knows PERSON by the VALUE door.",
        ),
        (
            "PERSON has painted the front door again, and now it is VALUE.",
            "The door of PERSON is VALUE from today.",
        ),
        (
            "What colour is the door of PERSON?",
            "Which colour did PERSON paint the front door?",
            "What is the colour of the door of PERSON?",
        ),
    ),
    Attribute(
        "drink",
        _words(
            "tea coffee milk water wine beer cider brandy whisky rum gin cocoa chocolate lemonade port "
            "sherry punch soup juice champagne"
        ),
        (
            "With every meal PERSON drinks VALUE.",
            "PERSON drinks nothing but VALUE.",
            "The drink that PERSON asks for is VALUE.",
        ),
        (
            "PERSON has been told to change and now drinks VALUE.",
            "From now on the drink that PERSON asks for is VALUE.",
        ),
        (
            "What does PERSON drink?",
            "Which drink does PERSON ask for?",
            "What is the drink of PERSON?",
        ),
    ),
    Attribute(
        "country",
        _words(
            "France Spain Germany Russia China Japan Brazil Mexico Canada Turkey Greece Poland Norway "
            "Sweden Denmark Portugal Belgium Scotland Wales Persia Chile Peru Cuba Kenya Morocco"
        ),
        (
            "PERSON was born in VALUE.",
            "PERSON came here from VALUE.",
            "The home of PERSON is in VALUE.",
        ),
        (
            "The papers were wrong, and PERSON was really born in VALUE.",
            "It turns out that PERSON came here from VALUE.",
        ),
        (
            "Where was PERSON born?",
            "Which country does PERSON come from?",
            "What is the country of PERSON?",
        ),
    ),
    Attribute(
        "month",
        ("January", "February", "March", "May", "June", "July", "September", "November", "December"),
        (
            "PERSON goes away every year in VALUE.",
            "In VALUE PERSON goes on a long journey.",
            "The month in which PERSON travels is VALUE.",
        ),
        (
            "PERSON has put the journey off and now travels in VALUE.",
            "From this year PERSON goes away in VALUE.",
        ),
        (
            "In which month does PERSON travel?",
            "When does PERSON go away?",
            "What is the month in which PERSON goes on a journey?",
        ),
    ),
    Attribute(
        "vehicle",
        _words(
            "boat ship train car cart coach carriage bicycle wagon tram bus truck sledge canoe ferry "
            "balloon raft tractor steamer railway"
        ),
        (
            "PERSON goes to town by VALUE.",
            "Every morning PERSON takes the VALUE.",
            "The VALUE is how PERSON gets to work.",
        ),
        (
            "PERSON no longer travels as before and takes the VALUE.",
            "Since the road was closed PERSON goes to town by VALUE.",
        ),
        (
            "How does PERSON go to town?",
            "What does PERSON take every morning?",
            "How does PERSON get to work?",
        ),
    ),
    Attribute(
        "subject",
        _words(
            "history music law medicine physics chemistry mathematics poetry geography philosophy botany "
            "logic drawing Latin French German Spanish Russian Danish Swedish"
        ),
        (
            "PERSON studied VALUE at school.",
            "PERSON reads books on VALUE and on nothing else.",
            "The subject that PERSON knows best is VALUE.",
        ),
        (
            "PERSON has left the old subject behind and now studies VALUE.",
            "PERSON reads only books on VALUE this year.",
        ),
        (
            "What did PERSON study?",
            "Which subject does PERSON know best?",
            "What does PERSON read books on?",
        ),
    ),
)

WORDS = {
    "ADJ": _words(
        "young long short dark bright cold warm quiet heavy narrow wide broken clean strange famous "
        "poor rich simple wooden little great late green small"
    ),
    "NOUN": _words(
        "river road house bridge garden church window table letter book lamp stone wall field market "
        "mountain tree street ship station school clock picture chair tower kitchen forest hill"
    ),
    "PEOPLE": _phrases(
        "the children, the neighbours, the workmen, the ladies, the travellers, the boys, the "
        "officers, the visitors, the students, the servants"
    ),
    "DID": _phrases(
        "talked about, walked past, looked at, remembered, painted, forgot, came back to, waited "
        "near, complained of, laughed at, stood before, wrote about"
    ),
    "TIME": _phrases(
        "in the morning, at night, before dinner, after the rain, in the spring, last winter, on "
        "Sunday, at noon, for a whole week, every day, in those years, at last"
    ),
    "NUMBER": _words("two three four five six seven eight nine ten eleven twelve twenty thirty"),
    "DAY": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "PLACE": _phrases("post office, library, town hall, harbour, museum, theatre, bank, hospital, factory"),
}

DISTRACTORS = (
    "the ADJ NOUN was ADJ TIME.",
    "PEOPLE DID the ADJ NOUN TIME.",
    "TIME PEOPLE DID the NOUN.",
    "there was a NOUN behind the ADJ NOUN.",
    "nobody DID the NOUN TIME.",
    "it is said that PEOPLE DID the NOUN near the NOUN.",
    "a man sold a ADJ NOUN and NUMBER lamps TIME.",
    "from the NOUN one could see the ADJ NOUN.",
    "the road to the NOUN was ADJ and ADJ.",
    "PEOPLE were seen by the NOUN TIME.",
    "somebody spoke of the VALUE TIME, but it did not matter.",
    "there was a picture of a VALUE near the ADJ NOUN.",
    "PEOPLE had read about the VALUE and DID the NOUN.",
)

# For texts that have nothing to do with the rest.
OTHERS = (
    "the PLACE opens at NUMBER on DAY and closes at NUMBER.",
    "NUMBER and NUMBER are numbers.",
    "the next meeting at the PLACE will be on DAY at NUMBER.",
    "take NUMBER spoons of flour and NUMBER eggs, and wait NUMBER minutes.",
    "turn left at the PLACE, go on for NUMBER miles, then turn right.",
    "the price of NUMBER tickets is NUMBER dollars on DAY.",
    "page NUMBER of the report is missing, and so is page NUMBER.",
    "the score was NUMBER to NUMBER at the end of the match on DAY.",
    "please return the key to the PLACE before DAY.",
    "the temperature fell by NUMBER degrees between DAY and DAY.",
    "trains to the PLACE leave every NUMBER minutes.",
    "box number NUMBER contains NUMBER nails and NUMBER screws.",
)

SYLLABLES = _words(
    "ba bel bri cor dan del dor fal fen gar gil gor hal hor jan jor kal kel kor lan lem lin lor "
    "mal mar mel mor nal nor pal pel por quin ral ren ril ros sal sel sor tal tam tor val ven vor "
    "wel win yor zan zel"
)
