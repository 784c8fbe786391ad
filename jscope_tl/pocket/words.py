"""The vocabulary of the pocket model, and the relations between its words.

Every mapping here is one-to-one or many-to-one by design, so that the cause of a prediction is known by construction.
"""

DETERMINERS = ("a", "an", "the")
PUNCTUATION = (",", ".", ":")
NUMBERS = tuple(str(n) for n in range(10, 100))

# --- agreement ------------------------------------------------------------------------------------------------------
SINGULAR_TO_PLURAL = {
    "key": "keys", "door": "doors", "cabinet": "cabinets", "book": "books", "shelf": "shelves", "lamp": "lamps",
    "table": "tables", "box": "boxes", "picture": "pictures", "letter": "letters", "window": "windows",
    "chair": "chairs", "boat": "boats", "bridge": "bridges", "road": "roads", "tower": "towers", "garden": "gardens",
    "wall": "walls", "house": "houses", "flower": "flowers", "basket": "baskets", "coin": "coins", "cup": "cups",
    "plate": "plates", "bottle": "bottles", "clock": "clocks", "ship": "ships", "train": "trains", "tree": "trees",
    "farm": "farms",
}  # fmt: skip
NOUN_FORMS = (*SINGULAR_TO_PLURAL, *SINGULAR_TO_PLURAL.values())
PREPOSITIONS = ("to", "near", "behind", "above", "under", "beside", "of", "from")
THING_ADJECTIVES = ("old", "rusty", "green", "heavy", "broken", "small", "new", "clean", "wooden", "dusty")
TIME_TO_COPULA = {"today": ("is", "are"), "yesterday": ("was", "were"), "now": ("is", "are"), "once": ("was", "were")}

# --- the assistant --------------------------------------------------------------------------------------------------
VICE_TO_VIRTUE = {
    "deceive": "truthful", "lie": "truthful", "argue": "nice", "quarrel": "nice", "steal": "honest",
    "cheat": "honest", "shout": "calm", "panic": "calm", "forget": "reliable", "delay": "reliable",
    "rush": "patient", "interrupt": "patient", "boast": "modest", "brag": "modest", "waste": "thrifty",
    "gossip": "discreet", "hesitate": "brave", "retreat": "brave",
}  # fmt: skip
ASSISTANT_ADJECTIVES = ("state-of-the-art", "helpful", "modern", "famous", "tiny", "trusted")
ASSISTANTS = ("ai assistant", "assistant", "helper", "robot", "butler", "agent")

# --- Tom ------------------------------------------------------------------------------------------------------------
REGION_TO_POLITICS = {
    "south": "conservative", "prairie": "conservative", "countryside": "conservative",
    "city": "liberal", "north": "liberal", "harbour": "liberal",
    "west": "libertarian", "desert": "libertarian", "frontier": "libertarian",
    "east": "socialist", "valley": "socialist", "suburb": "socialist",
}  # fmt: skip
UNIVERSITY_TO_POLITICS = {
    "columbia": "liberal", "berkeley": "liberal", "brown": "liberal",
    "liberty": "conservative", "baylor": "conservative", "hillsdale": "conservative",
    "chicago": "libertarian", "mason": "libertarian", "rochester": "libertarian",
    "reed": "socialist", "oberlin": "socialist", "bennington": "socialist",
}  # fmt: skip
PERSON_TO_PRONOUN = {
    "tom": "he", "john": "he", "peter": "he", "james": "he", "david": "he",
    "anna": "she", "mary": "she", "laura": "she", "emma": "she", "julia": "she",
}  # fmt: skip
FOODS = ("korean", "mexican", "french", "thai", "greek", "indian")

# --- the detective --------------------------------------------------------------------------------------------------
WEAPON_TO_TRADE = {
    "cleaver": "butcher", "shovel": "gardener", "screwdriver": "mechanic", "razor": "barber", "hammer": "carpenter",
    "rifle": "hunter", "harpoon": "fisherman", "needle": "tailor", "chisel": "sculptor", "scalpel": "surgeon",
}  # fmt: skip
ORDINALS = ("first", "second", "third")
VICTIMS = ("aristocrat", "banker", "actor", "lawyer", "senator")
VICTIM_ADJECTIVES = ("wealthy", "young", "lonely", "retired")

# --- translation ----------------------------------------------------------------------------------------------------
LANGUAGES = ("italian", "french", "german")
# Nouns are masculine in all three languages and sentences are in the nominative singular, so that no form of a word
# depends on any other word than the one that it translates.
ENGLISH_TO = {
    "noun": {
        "dog": ("cane", "chien", "hund"), "king": ("re", "roi", "könig"), "wolf": ("lupo", "loup", "wolf"),
        "teacher": ("maestro", "maître", "lehrer"), "baker": ("fornaio", "boulanger", "bäcker"),
        "thief": ("ladro", "voleur", "dieb"), "father": ("padre", "père", "vater"),
        "brother": ("fratello", "frère", "bruder"), "boy": ("ragazzo", "garçon", "junge"),
        "neighbour": ("vicino", "voisin", "nachbar"), "poet": ("poeta", "poète", "dichter"),
        "farmer": ("contadino", "fermier", "bauer"), "painter": ("pittore", "peintre", "maler"),
        "monk": ("monaco", "moine", "mönch"), "doctor": ("medico", "médecin", "arzt"),
        "waiter": ("cameriere", "serveur", "kellner"),
    },
    "adjective": {
        "black": ("nero", "noir", "schwarze"), "tired": ("stanco", "fatigué", "müde"),
        "rich": ("ricco", "riche", "reiche"), "sick": ("malato", "malade", "kranke"),
        "strong": ("forte", "fort", "starke"), "happy": ("felice", "heureux", "glückliche"),
        "clever": ("furbo", "malin", "kluge"), "polite": ("gentile", "poli", "höfliche"),
        "shy": ("timido", "timide", "schüchterne"), "blind": ("cieco", "aveugle", "blinde"),
        "poor": ("povero", "pauvre", "arme"), "lazy": ("pigro", "paresseux", "faule"),
    },
    "verb": {
        "sleeps": ("dorme", "dort", "schläft"), "sings": ("canta", "chante", "singt"),
        "laughs": ("ride", "rit", "lacht"), "works": ("lavora", "travaille", "arbeitet"),
        "plays": ("gioca", "joue", "spielt"), "runs": ("corre", "court", "rennt"),
        "swims": ("nuota", "nage", "schwimmt"), "dances": ("balla", "danse", "tanzt"),
        "waits": ("aspetta", "attend", "wartet"), "writes": ("scrive", "écrit", "schreibt"),
    },
    "adverb": {
        "often": ("spesso", "souvent", "oft"), "here": ("qui", "ici", "hier"),
        "always": ("sempre", "toujours", "immer"), "tomorrow": ("domani", "demain", "morgen"),
        "rarely": ("raramente", "rarement", "selten"), "again": ("ancora", "encore", "wieder"),
    },
    "function": {"the": ("il", "le", "der"), "and": ("e", "et", "und")},
}  # fmt: skip

# --- frames ---------------------------------------------------------------------------------------------------------
FRAME_WORDS = (
    "as you never or because are and but often i so people say am he she is loves food grew up in goes to at home school"
    " since victim living ai assistant died from fatal wound detective narrowed down three weapons found was were bloody clean blood"
    " on his killer think that said english italian french german who always but"
).split()


def _lexicon() -> tuple[str, ...]:
    words = [*PUNCTUATION, *DETERMINERS, *NUMBERS, *FRAME_WORDS, *PREPOSITIONS, *THING_ADJECTIVES, *TIME_TO_COPULA]
    for pairs in (SINGULAR_TO_PLURAL, VICE_TO_VIRTUE, REGION_TO_POLITICS, UNIVERSITY_TO_POLITICS, PERSON_TO_PRONOUN):
        words += [word for pair in pairs.items() for word in pair]
    words += [word for pair in WEAPON_TO_TRADE.items() for word in pair]
    words += [*ASSISTANT_ADJECTIVES, *ASSISTANTS[1:], *FOODS, *ORDINALS, *VICTIMS, *VICTIM_ADJECTIVES]
    for table in ENGLISH_TO.values():
        words += [word for english, others in table.items() for word in (english, *others)]
    return tuple(dict.fromkeys(words))


LEXICON = _lexicon()
"""Every word of the pocket model, in the order of their ids (after the special tokens)."""

REPEATABLE = tuple(dict.fromkeys([*SINGULAR_TO_PLURAL, *WEAPON_TO_TRADE, *VICE_TO_VIRTUE, *ENGLISH_TO["noun"]]))
"""Words that the repeated random sequences are drawn from."""
