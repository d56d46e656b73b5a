"""Recognise devices that can cause harm by their names and words, in nine languages.

A name is compared without accents, and in German also with `ae`, `oe` and `ue`. Most words are found inside longer ones, as in
`Garagentor`; a short word counts at the beginning of a word or as a whole one. A harmless device that is left out costs one
option of a person. A dangerous one that is proposed may cause a fire or open a house.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

INSIDE: dict[str, str] = {
    "English": "(?<!c)lock alarm garage gate(?!way) (?<!\\bout)(?<!\\bin)door siren boiler (?<!b)oven stove gas(?!t) valve (?<!dis)(?<!re)cover shutter blind curtain awning (?<!cont)roller "
    "window hatch kettle cooker fireplace furnace fryer sauna radiator thermostat hvac (?<![wt])heat irrigation sprinkler "
    "fridge freezer refrigerat aquarium terrarium vivarium medical respirator cpap dialysis infusion oxygen toaster grill barbecue microwave "
    "cooktop hot_plate dryer dishwash washing_machine pump elevator winch crane compressor welder chainsaw table_saw mower "
    "wallbox ev_charger car_charger breaker main_switch mains immersion geyser smelter kiln incubator weapon blade",
    "German": "heiz kessel gastherm warmwasser kocher ofen oefen herdplatte kochfeld kochplatte fritteuse buegeleisen schloss "
    "schliess riegel tuer garagentor hoftor gartentor rolltor einfahrt toroeffner torantrieb pforte schranke rolladen rollladen "
    "rollo jalousie markise vorhang gardine fenster dachluke ventil(?!a) wasserhahn sirene kamin pumpe bewaesser sprenger "
    "kuehlschrank kuehltruhe gefrier beatmung waschmaschine trockner spuelmaschine saege kompressor aufzug maeher ladestation "
    "ladesaeule hauptschalter sicherungs stellantrieb infrarot waermelampe rotlicht brutkasten brennofen",
    "French": "chauff chaudiere cumulus ballon_d radiateur fournaise poele cuisiniere plaque bouilloire fer_a_repasser grille_pain "
    "friteuse serrure verrou cadenas porte portail portillon barriere volet rideau fenetre vanne robinet gaz sirene alarme "
    "cheminee arrosage pompe congelateur frigo seche_linge lave_linge lave_vaisselle ascenseur tondeuse recharge(?!ab) disjoncteur "
    "velux persienne",
    "Spanish": "calefac calentador caldera estufa horno hornillo vitroceramica fogon plancha tostador freidora hervidor radiador "
    "cerradura cerrojo candado pestillo puerta porton garaje cochera verja barrera persiana toldo cortina ventana valvula grifo "
    "llave_de_paso sirena chimenea riego aspersor bomba nevera congelador secadora lavadora lavavajillas ascensor cortacesped "
    "compresor",
    "Italian": "riscald caldaia scalda stufa forno fornell piano_cottura bollitore tostapane friggitrice ferro_da_stiro termosifone "
    "radiatore serratura lucchetto chiavistello cancello basculante sbarra tapparell serrand persian veneziana finestra "
    "lucernario valvola rubinetto allarme camino caminetto irriga pompa congelatore asciugatrice lavatrice lavastoviglie "
    "tosaerba compressore",
    "Dutch": "verwarm kachel ketel geiser fornuis kookplaat inductie koker tosti strijkijzer frituur slot grendel deur poort "
    "slagboom rolluik luik gordijn zonwering luifel zonnescherm lamell raam venster ventiel klep kraan haard beregening sproei "
    "pomp koelkast vriezer vriesk droger wasmachine vaatwasser grasmaaier zaag laadpaal schakelkast",
    "Polish": "grzej grzalk ogrzew bojler piecyk piekarnik kociol kotl kuchenk czajnik toster zelazko frytownic kaloryfer zamek zamk "
    "rygiel klodk drzwi furtk garaz szlaban rolet zaluzj markiz zaslon zawor kran syren kominek nawadnia zraszacz podlew lodowk "
    "zamrazark suszark pralk zmywark winda kosiark sprezark",
    "Portuguese": "aquec caldeira esquentador termoacumulador cilindro fogao fogoes forno chaleira torradeira fritadeira "
    "ferro_de_engomar radiador fechadura trinco cadeado ferrolho porta(?!bl) portao portoes garagem cancela persiana estore toldo "
    "cortina janela torneira lareira aspersor bomba geladeira frigorific congelador secador maquina_de_lavar elevador corta_relva "
    "chuveiro",
    "Scandinavian": "varme (?<!s)panna ugn komfyr spis dorr doer laas ventil(?!a) kran kylskap frys torktumlare tvattmaskin pump",
}
"""By language: regular expressions of words, found anywhere. `_` is the end of a word."""
WHOLE = (
    "tor tore herd therme hahn luke grill hob iron saw lift drill four gaz termo rega serra sega porta tenda tende cv "
    "hek stuw piec plyta bram okn pila ovn ovnen peis okno dveri kotel topeni zamok"
)
"""Words that count as whole words only: elsewhere they are parts of harmless ones, as in `monitor`."""
ACTIONS = "open opened close closed unlock lock arm armed disarm heat heating fire release auf zu"
"""Commands that say what a device does, each a whole word."""


_ALL = sorted({word for words in INSIDE.values() for word in words.split()})
_LITERAL = tuple(word for word in _ALL if word.isalpha())
_INSIDE = re.compile("|".join(word.replace("_", " ?") for word in _ALL if not word.isalpha()))
_WHOLE = frozenset(WHOLE.split())
_ACTIONS = frozenset(ACTIONS.split())
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SIGNS = re.compile(r"[\W_]+")
_GERMAN = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe", "æ": "ae"})
_PLAIN = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "\u0131": "i"})


@lru_cache(maxsize=4_096)
def is_dangerous(text: str) -> bool:
    """Return whether a name, a topic or a description is of a device that no program may move without a decision of a person.

    A text with letters that are not Latin counts as dangerous, because no list here has its words.
    """
    if any(map(_names_one, _spellings(text))):
        return True
    return not text.isascii() and any(
        each.isalpha() and not unicodedata.name(each, "").startswith(_LATIN) for each in text
    )


def does_harm(command: str) -> bool:
    """Return whether a command opens, closes, locks, arms or heats something."""
    return any(not _ACTIONS.isdisjoint(each.split()) or _names_one(each) for each in _spellings(command))


def _names_one(spelling: str) -> bool:
    is_inside = any(word in spelling for word in _LITERAL)
    return is_inside or not _WHOLE.isdisjoint(spelling.split()) or _INSIDE.search(spelling) is not None


_LATIN = ("LATIN ", "FEMININE ORDINAL", "MASCULINE ORDINAL")


def _spellings(text: str) -> set[str]:
    """Return a text in small letters, its words separated by one space: with German's two letters, and without accents."""
    parted = _CAMEL.sub(" ", text)
    if parted.isascii():
        return {_SIGNS.sub(" ", parted.lower())}
    seen = "".join(c for c in parted if unicodedata.category(c) != "Cf")  # signs without a width do not hide a word
    composed = unicodedata.normalize("NFKC", seen).casefold()
    bare = "".join(c for c in unicodedata.normalize("NFKD", composed.translate(_PLAIN)) if not unicodedata.combining(c))
    return {_SIGNS.sub(" ", composed.translate(_GERMAN)), _SIGNS.sub(" ", bare)}
