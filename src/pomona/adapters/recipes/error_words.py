"""Words for the error model (error_model.py): closed lists, written by hand, of mistakes that are always mistakes
or nearly so."""

from __future__ import annotations

# Groups of words that sound alike or are mixed up; each may stand for each other one.
HOMOPHONES = tuple(
    tuple(group.split("/"))
    for group in (
        "their/there/they're your/you're its/it's to/too then/than affect/effect lose/loose whose/who's "
        "hear/here weather/whether accept/except principal/principle passed/past piece/peace brake/break "
        "quiet/quite know/no write/right buy/by where/were wear/where threw/through week/weak whole/hole "
        "led/lead advice/advise practice/practise complement/compliment stationary/stationery site/sight "
        "sell/cell new/knew our/are of/off bare/bear plain/plane role/roll allowed/aloud course/coarse "
        "desert/dessert device/devise ensure/insure formerly/formally later/latter meet/meat one/won "
        "scene/seen steal/steel tail/tale waist/waste wait/weight"
    ).split()
)

MISSPELT: dict[str, tuple[str, ...]] = {
    right: tuple(wrong.split("/"))
    for right, wrong in (
        pair.split(":")
        for pair in (
            "receive:recieve believe:beleive their:thier friend:freind separate:seperate definitely:definately/"
            "definitly government:goverment environment:enviroment necessary:neccessary/necesary occurred:"
            "occured beginning:begining until:untill tomorrow:tommorow/tommorrow which:wich because:becuase/"
            "becouse different:diffrent/differant important:importent interesting:intresting knowledge:knowlege "
            "language:langauge library:libary people:poeple/peopel probably:probaly really:realy several:sevral "
            "successful:succesful/successfull surprise:suprise though:thougt together:togather usually:usualy "
            "address:adress across:accross argument:arguement business:bussiness/buisness calendar:calender "
            "certain:certian committee:commitee completely:completly different:diferent disappear:dissapear "
            "embarrass:embarass especially:expecially/especialy example:exemple experience:experiance "
            "finally:finaly foreign:foriegn grammar:grammer height:heigth immediately:immediatly "
            "independent:independant island:iland journey:jurney maintenance:maintenence minute:minuite "
            "neighbour:nieghbour occasion:ocassion/occassion opportunity:oportunity original:origional "
            "parliament:parliment particular:particlar performance:performence possible:possable "
            "professional:proffesional/profesional public:publick question:qestion recommend:recomend/reccomend "
            "remember:rember restaurant:restaraunt rhythm:rythm schedule:schedual science:sience similar:similer "
            "special:speshal strength:strenght through:throught truly:truely university:univercity "
            "weird:wierd whether:wether writing:writting available:availible appearance:appearence "
            "achieve:acheive although:altough always:allways another:anouther answer:anwser around:arround "
            "before:befor between:beetween both:boath building:bilding century:centuary character:charactor "
            "children:childern country:contry development:developement during:durring early:erly every:evry "
            "family:famly general:genral group:groop history:histery however:howerver include:inculde "
            "international:internatinal known:knowen later:leter many:meny military:millitary modern:modren "
            "national:nationel number:nubmer often:offen political:politcal popular:populer power:powr "
            "president:presedent problem:problam produced:prodused religious:religous result:resault "
            "school:scool service:servise should:shoud small:smal social:socail state:staet system:sistem "
            "system:systme theory:thoery traditional:tradional various:varius would:woud"
        ).split()
    )
}

# singular/plural forms of verbs: each for the other
AGREEMENT = tuple(
    tuple(pair.split("/"))
    for pair in (
        "is/are was/were has/have does/do doesn't/don't isn't/aren't wasn't/weren't hasn't/haven't says/say "
        "makes/make takes/take gives/give shows/show includes/include contains/contain becomes/become "
        "comes/come goes/go seems/seem needs/need wants/want knows/know believes/believe remains/remain "
        "begins/begin provides/provide requires/require offers/offer refers/refer appears/appear "
        "consists/consist lives/live allows/allow helps/help keeps/keep tends/tend depends/depend"
    ).split()
)

# base / past / participle of irregular verbs where past and participle differ
IRREGULAR = tuple(
    tuple(verb.split("/"))
    for verb in (
        "go/went/gone see/saw/seen take/took/taken give/gave/given write/wrote/written know/knew/known "
        "begin/began/begun break/broke/broken choose/chose/chosen do/did/done drive/drove/driven eat/ate/eaten "
        "fall/fell/fallen grow/grew/grown speak/spoke/spoken show/showed/shown rise/rose/risen draw/drew/drawn "
        "become/became/become come/came/come run/ran/run sing/sang/sung swim/swam/swum wear/wore/worn "
        "throw/threw/thrown steal/stole/stolen forget/forgot/forgotten hide/hid/hidden ride/rode/ridden"
    ).split()
)

# (word before, right preposition, wrong ones)
PREPOSITIONS = tuple(
    (left, right, tuple(wrong.split("/")))
    for left, right, wrong in (
        line.split()
        for line in (
            "interested in on/at|depend on of/from|depends on of/from|depended on of/from|consists of from/in|"
            "consist of from/in|responsible for of/on|married to with/at|different from of/with|good at in/on|"
            "afraid of from/by|proud of on/for|based on in/at|according to with/of|similar to with/of|"
            "related to with/on|belongs to at/in|belong to at/in|known for of/by|refers to at/on|refer to at/on|"
            "focus on at/in|focused on at/in|part of from/on|number of from/on|capable of to/for|full of with/from|"
            "listen to at/on|wait for on/to|waiting for on/to|looking forward for/of|arrived in to/on|"
            "participate in on/at|participated in on/at|instead of from/to|because of from/by|due to of/from|"
            "influenced by from/of|caused by from/of|divided into on/at|member of from/in|members of from/in|"
            "result of from/by|example of from/to|kind of from/in|response to for/at|access to at/for|"
            "reason for of/to|search for of/to|thanks to for/of|on behalf at/in|in addition on/at|"
            "famous for of/by|aware of about/on|composed of from/with|made of from/at|used to for/at"
        ).split("|")
    )
)

CONFUSED_QUANTITIES = (("many", "much"), ("fewer", "less"), ("few", "little"))
CONTRACTIONS = (
    "don't doesn't didn't can't couldn't won't wouldn't isn't aren't wasn't weren't hasn't haven't hadn't it's "
    "that's there's they're you're we're i'm i've you've we've they've i'll you'll let's shouldn't"
).split()
DROPPABLE = frozenset("to of is are the that with for at by from be been has have was were and".split())
DOUBLED = frozenset("the a to of and in is that it for was on with as at by be he they we you".split())
COMPOUNDS = (
    "without within into onto something someone everything everyone anything anyone sometimes somewhere "
    "however therefore although maybe cannot nothing another themselves himself itself understand become "
    "because outside inside today already weekend online website football newspaper background"
).split()
JOINED = (
    ("a lot", "alot"),
    ("in fact", "infact"),
    ("as well", "aswell"),
    ("at least", "atleast"),
    ("in front", "infront"),
    ("each other", "eachother"),
    ("no one", "noone"),
    ("all right", "alright"),
    ("even though", "eventhough"),
    ("of course", "ofcourse"),
    ("such as", "suchas"),
)
KEYBOARD = dict(
    zip(
        "qwertyuiopasdfghjklzxcvbnm",
        (
            "wa qes wrd etf ryg tuh yij uok ipl o qsz awdx serf drgc fthv gyjb hukn jilm ko asx zsdc xdfv cfgb "
            "vghn bhjm njk"
        ).split(),
        strict=True,
    )
)
