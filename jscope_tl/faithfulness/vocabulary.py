"""Kinds of words and relations between words, with which the templates of `jscope_tl.faithfulness.families` are filled.

Words that are not a single token of a model are not used with this model, so the lists are longer than any model needs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True)
class Kind:
    """A kind of word: its words, in groups.

    Attributes:
        name: the name in templates.
        groups: a word is swapped for words of other groups. There is one group for each number or gender, so that a swap is to the
            opposite one; for other kinds each word is a group.
        paired: whether the words at the same place of all groups are forms of one word; the other form is then the first swap.
    """

    name: str
    groups: tuple[tuple[str, ...], ...]
    paired: bool = False
    _group: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        places = {word: number for number, group in enumerate(self.groups) for word in group}
        object.__setattr__(self, "_group", places)

    @property
    def words(self) -> tuple[str, ...]:
        """All words of the kind."""
        return tuple(self._group)

    def others(self, word: str) -> list[str]:
        """The words for which a word may be swapped."""
        return [other for other in self._group if self._group[other] != self._group.get(word)]

    def forms(self, word: str) -> list[str]:
        """The other forms of the same word; none if the kind has no forms."""
        if not self.paired or word not in self._group:
            return []
        place = self.groups[self._group[word]].index(word)
        return [group[place] for group in self.groups if group[place] != word]


@dataclass(frozen=True)
class Relation:
    """A mapping from words to words, for ``{name(slot)}`` in a template.

    Attributes:
        kind: the kind of the resulting words.
        of: from a word to the resulting word, or to several words that are all correct.
    """

    kind: str
    of: Mapping[str, str | tuple[str, ...]]


def plain(name: str, words: str | Iterable[str]) -> Kind:
    """A kind in which any word may be swapped for any other."""
    listed = words.split() if isinstance(words, str) else words
    return Kind(name, tuple((word,) for word in dict.fromkeys(listed)))


def _pairs(text: str) -> dict[str, str]:
    """A dictionary from text such as ``one:other one:other``."""
    return dict(pair.split(":") for pair in text.split())


def _both_ways(pairs: dict[str, str]) -> dict[str, str]:
    return pairs | {other: one for one, other in pairs.items()}


def _following(words: str) -> dict[str, str]:
    listed = words.split()
    return dict(pairwise(listed))


MEN = (
    "John James Robert Michael William David Richard Thomas Charles Daniel Matthew Mark Paul Steven Andrew Peter George Kevin "
    "Brian Edward Jason Jeffrey Ryan Jacob Nicholas Eric Jonathan Stephen Larry Justin Scott Benjamin Samuel Jack Henry Adam Tom"
)
WOMEN = (
    "Mary Patricia Jennifer Linda Elizabeth Barbara Susan Jessica Sarah Karen Lisa Nancy Margaret Emily Michelle Amanda Laura "
    "Rebecca Helen Anna Ruth Rachel Maria Julia Emma Alice Jane Anne Martha Grace Sophie Kate Rose Lucy Clara Diana"
)
MALE_PEOPLE = "man boy father son brother uncle king prince husband grandfather gentleman actor waiter monk duke"
FEMALE_PEOPLE = (
    "woman girl mother daughter sister aunt queen princess wife grandmother lady actress waitress nun duchess"
)
SINGULAR_TO_PLURAL = _pairs(
    "key:keys door:doors book:books lamp:lamps table:tables box:boxes picture:pictures letter:letters window:windows chair:chairs "
    "boat:boats bridge:bridges road:roads tower:towers garden:gardens wall:walls house:houses flower:flowers coin:coins cup:cups "
    "bottle:bottles clock:clocks ship:ships train:trains tree:trees farm:farms car:cars painting:paintings computer:computers "
    "camera:cameras ticket:tickets machine:machines engine:engines document:documents photo:photos toy:toys shirt:shirts "
    "building:buildings church:churches"
)
ANIMAL_TO_PLURAL = _pairs(
    "cat:cats dog:dogs horse:horses cow:cows bird:birds lion:lions tiger:tigers bear:bears rabbit:rabbits snake:snakes "
    "monkey:monkeys frog:frogs duck:ducks elephant:elephants spider:spiders turtle:turtles whale:whales bee:bees pig:pigs rat:rats"
)
ANTONYMS = _both_ways(
    _pairs(
        "hot:cold up:down left:right black:white day:night good:bad happy:sad rich:poor fast:slow open:closed young:old hard:soft "
        "light:dark strong:weak high:low full:empty early:late near:far wet:dry thick:thin love:hate win:lose push:pull buy:sell "
        "true:false clean:dirty inside:outside above:below before:after first:last north:south east:west summer:winter "
        "heavy:light deep:shallow sweet:sour loud:quiet safe:dangerous cheap:expensive alive:dead brave:afraid begin:end "
        "yes:no wide:narrow male:female always:never more:less peace:war"
    )
)
CAPITALS = _pairs(
    "France:Paris Germany:Berlin Italy:Rome Spain:Madrid Japan:Tokyo Russia:Moscow China:Beijing England:London Egypt:Cairo "
    "Greece:Athens Austria:Vienna Portugal:Lisbon Ireland:Dublin Poland:Warsaw Hungary:Budapest Sweden:Stockholm Norway:Oslo "
    "Denmark:Copenhagen Finland:Helsinki Belgium:Brussels Cuba:Havana Iran:Tehran Iraq:Baghdad Kenya:Nairobi Canada:Ottawa "
    "Thailand:Bangkok Peru:Lima Chile:Santiago Syria:Damascus Ukraine:Kiev Scotland:Edinburgh Lebanon:Beirut Turkey:Ankara"
)
FRENCH = _pairs(
    "dog:chien cat:chat house:maison water:eau red:rouge white:blanc black:noir green:vert man:homme woman:femme day:jour "
    "night:nuit king:roi queen:reine two:deux three:trois four:quatre sun:soleil book:livre bread:pain city:ville "
    "world:monde love:amour friend:ami life:vie time:temps sea:mer milk:lait horse:cheval small:petit good:bon bad:mauvais "
    "with:avec without:sans but:mais where:où always:toujours never:jamais more:plus war:guerre country:pays death:mort "
    "end:fin hand:main head:tête door:porte street:rue child:enfant father:père mother:mère brother:frère sister:soeur "
    "son:fils school:école tree:arbre fire:feu wind:vent earth:terre sky:ciel rain:pluie body:corps heart:cœur name:nom "
    "word:mot thing:chose place:lieu new:nouveau old:vieux young:jeune"
)
SPANISH = _pairs(
    "dog:perro cat:gato house:casa water:agua red:rojo white:blanco black:negro green:verde man:hombre woman:mujer day:día "
    "night:noche king:rey queen:reina two:dos three:tres four:cuatro sun:sol moon:luna book:libro bread:pan city:ciudad "
    "world:mundo love:amor friend:amigo life:vida time:tiempo year:año sea:mar milk:leche horse:caballo small:pequeño "
    "good:bueno bad:malo with:con without:sin where:donde always:siempre never:nunca more:más war:guerra death:muerte "
    "end:fin hand:mano head:cabeza door:puerta street:calle father:padre mother:madre brother:hermano son:hijo "
    "school:escuela tree:árbol fire:fuego wind:viento earth:tierra sky:cielo body:cuerpo heart:corazón name:nombre "
    "word:palabra number:número thing:cosa place:lugar new:nuevo old:viejo young:joven blue:azul light:luz peace:paz "
    "bridge:puente voice:voz air:aire"
)
GERMAN = _pairs(
    "dog:Hund house:Haus water:Wasser red:rot white:weiß black:schwarz man:Mann woman:Frau day:Tag night:Nacht king:König "
    "two:zwei three:drei sun:Sonne moon:Mond book:Buch bread:Brot city:Stadt world:Welt love:Liebe friend:Freund life:Leben "
    "time:Zeit year:Jahr sea:Meer milk:Milch good:gut with:mit without:ohne where:wo always:immer never:nie more:mehr "
    "war:Krieg country:Land death:Tod end:Ende head:Kopf door:Tür street:Straße god:Gott child:Kind father:Vater "
    "mother:Mutter brother:Bruder son:Sohn school:Schule tree:Baum fire:Feuer earth:Erde word:Wort new:neu old:alt "
    "young:jung here:hier today:heute now:jetzt"
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
MONTHS = "January February March April May June July August September October November December"
LETTERS = "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z"
NUMBERS = "one two three four five six seven eight nine ten eleven twelve"
DIGITS = "0 1 2 3 4 5 6 7 8 9"
IS, ARE = ("is", "was", "has"), ("are", "were", "have")

KINDS = {
    kind.name: kind
    for kind in (
        plain("name", f"{MEN} {WOMEN}"),
        Kind("man or woman", (tuple(MEN.split()), tuple(WOMEN.split()))),
        Kind("male or female", (tuple(MALE_PEOPLE.split()), tuple(FEMALE_PEOPLE.split())), paired=True),
        Kind("noun", (tuple(SINGULAR_TO_PLURAL), tuple(SINGULAR_TO_PLURAL.values())), paired=True),
        plain("thing", SINGULAR_TO_PLURAL),
        plain("things", SINGULAR_TO_PLURAL.values()),
        plain("animal", ANIMAL_TO_PLURAL),
        plain("animals", ANIMAL_TO_PLURAL.values()),
        plain(
            "place",
            "store park school office station library hospital market restaurant museum beach theater garden hotel bank",
        ),
        plain("event", "party meeting concert wedding game dinner lecture storm trip show ceremony funeral"),
        plain(
            "gift", "drink book ring letter ball watch gift flower ticket card camera key hat coin cake phone map lamp"
        ),
        plain("color", "red blue green yellow black white brown purple pink orange gray gold silver"),
        plain(
            "quality",
            "old new small big strange heavy beautiful expensive broken famous simple dusty quiet large little",
        ),
        plain("fruit", "apple banana orange lemon peach cherry grape melon mango pear plum"),
        plain("food", "bread cheese rice soup fish meat salad pasta cake pizza chicken fruit honey"),
        plain(
            "job", "doctor teacher lawyer farmer nurse writer painter driver engineer judge baker pilot singer soldier"
        ),
        plain(
            "city",
            "London Paris Berlin Rome Madrid Tokyo Moscow Boston Chicago Dublin Vienna Athens Toronto Sydney Miami Seattle",
        ),
        plain("subject", "music history art science politics football math poetry religion nature money work"),
        plain("day", DAYS),
        plain("month", MONTHS),
        plain("letter", LETTERS),
        plain("number", NUMBERS),
        plain("digit", DIGITS),
        plain("season", "spring summer autumn winter"),
        plain("country", CAPITALS),
        plain("capital", CAPITALS.values()),
        plain("word with an opposite", ANTONYMS),
        plain("English word", [*FRENCH, *SPANISH, *GERMAN]),
        plain("French word", FRENCH.values()),
        plain("Spanish word", SPANISH.values()),
        plain("German word", GERMAN.values()),
    )
}
"""By name."""


def _by_group(kind: str, *values: str | tuple[str, ...]) -> dict[str, str | tuple[str, ...]]:
    """One value for the words of each group of a kind."""
    return {word: value for group, value in zip(KINDS[kind].groups, values, strict=True) for word in group}


SUBJECT = _by_group("man or woman", "he", "she") | _by_group("male or female", "he", "she")
RELATIONS = {
    "verb": Relation("verb", _by_group("noun", IS, ARE)),
    "he": Relation("pronoun", SUBJECT),
    "his": Relation("pronoun", {word: "his" if found == "he" else "her" for word, found in SUBJECT.items()}),
    "himself": Relation(
        "pronoun", {word: "himself" if found == "he" else "herself" for word, found in SUBJECT.items()}
    ),
    "counterpart": Relation(
        "any", _both_ways(dict(zip((*IS, "he", "his", "himself"), (*ARE, "she", "her", "herself"), strict=True)))
    ),
    "plural": Relation("things", SINGULAR_TO_PLURAL),
    "animals": Relation("animals", ANIMAL_TO_PLURAL),
    "capital": Relation("capital", {**CAPITALS, "Ukraine": ("Kiev", "Kyiv")}),
    "opposite": Relation("word with an opposite", ANTONYMS),
    "french": Relation("French word", FRENCH),
    "spanish": Relation("Spanish word", SPANISH),
    "german": Relation("German word", GERMAN),
    "day": Relation("day", _following(f"{DAYS} Monday")),
    "month": Relation("month", _following(f"{MONTHS} January")),
    "letter": Relation("letter", _following(LETTERS)),
    "number": Relation("number", _following(NUMBERS)),
    "later": Relation("digit", {digit: tuple(DIGITS.split()[int(digit) :]) for digit in DIGITS.split()}),
}
"""By name."""
