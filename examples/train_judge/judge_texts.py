"""Texts made by program to train the judge on: sentences whose label is known, and word salad.

The data sets teach a judge which words are happy. They teach it little about negation in short
sentences and about statements that praise nothing, and nothing about text that is not language.
`labelled` and `salad` fill those gaps; every text is drawn from the random generator given.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

# Words of the same slot. The environment's small vocabulary is covered by the first ones of each.
WORDS: dict[str, str] = {
    "good": "great good wonderful excellent amazing brilliant beautiful funny perfect fantastic "
    "charming fun fresh touching lovely terrific superb delightful moving clever enjoyable "
    "entertaining gripping gorgeous hilarious inventive memorable outstanding witty smart engaging "
    "impressive sweet magnificent likable warm satisfying splendid stunning thrilling",
    "bad": "terrible bad awful poor horrible stupid ugly dull weak disappointing annoying boring "
    "predictable pointless lame tedious bland dreadful pathetic silly ridiculous clumsy "
    "forgettable lousy mediocre unfunny tiresome cheap flat hollow shallow sloppy messy confusing "
    "unpleasant laughable lifeless insulting unwatchable atrocious",
    "joy": "masterpiece joy gem triumph treat delight winner marvel classic pleasure",
    "mess": "mess waste disaster failure bore disgrace dud flop joke train-wreck",
    "whole": "movie film story comedy drama picture show thriller script",
    "part": "plot acting cast script director music ending dialogue soundtrack editing pacing",
    "parts": "scenes characters jokes effects actors performances songs costumes twists dialogues",
    "loved": "loved enjoyed liked adored admired",
    "hated": "hated disliked loathed despised",
    "very": "very really so quite truly pretty absolutely incredibly",
    "this": "this that the",
    "is": "is was",
    "enjoy": "love like enjoy admire adore",
    "dislike": "hate dislike loathe despise",
    "charmed": "charmed moved delighted amused thrilled touched entertained gripped",
    "bored": "bored annoyed disappointed irritated confused embarrassed insulted unimpressed",
    "who": "my wife|my friend|my son|the teacher|our neighbour|a doctor|a young woman|two brothers|"
    "a soldier|an old man|a family|a lawyer|three friends|a student|she|he|they|we|the captain|"
    "the king|his father|her mother|a girl|the boy|everyone|the driver|a painter|the writer",
    "where": "Paris|Chicago|a small town|the desert|Japan|a school|the 1950s|Texas|an office|"
    "a hotel|London|the mountains|the kitchen|a garden|the north|Mexico|a village|the harbour|"
    "Berlin|an airport|a library|the library|the woods|India",
    "when": "yesterday|last night|on Sunday|in 1987|on television|on a plane|last week|at home|"
    "in 2001|this morning|in June|after work|at ten o'clock|with my brother|with subtitles|"
    "on a Thursday|before lunch|twice|in school|some years ago",
    "does": "worked in a bank|drove to the sea|met a stranger|read a letter|looked for a job|"
    "bought a car|went back home|called the police|opened a shop|walked to school|sat down|"
    "turned the key|asked a question|wrote a song|took the bus|stood by the door|put on a coat|"
    "waited for an answer|closed the window|picked up the bag|came from the south|had a brother|"
    "made coffee|carried a box|counted the chairs|talked about the weather|got a new job|"
    "moved to another town|was thirty years old|lived alone|spoke french|wore a grey hat",
    "better": "better funnier smarter sweeter warmer more-touching more-charming more-exciting",
    "worse": "worse duller uglier dumber weaker more-boring more-stupid more-annoying",
    "thing": "table water street paper wood glass road box number hour window door shoe coat wall "
    "bus letter bridge hat car phone key floor stone pencil page city king doctor week spoon "
    "cup bag boat horse field river island market train ticket corner roof stairs bread apple "
    "knife plate shirt button rope ladder basket bottle map clock drawer desk shelf carpet mirror "
    "brick tower farm barn wheel engine ship harbour station platform suitcase envelope stamp "
    "newspaper notebook camera screen actor scene title year genre audience crew village church",
    "between": "on under beside near behind in before after above between against across",
    "single": "january monday wednesday it and with under seven are from something someone here "
    "there he she man woman child men women adult nurse sailor brown eleven green tall often "
    "inside today then also because thursday europe italy twelve person hand foot hair head arm "
    "sister brother uncle farmer tree leaf grass cloud wind sand grey yellow blue walk sit stand "
    "go come put take said says told asked went came",
    "source": "a novel|a short story|a stage play|a comic book|real events|a poem|an old legend|"
    "a newspaper article|a television series|the memoirs of a nurse|a fairy tale|two letters|a song",
    "job": "a nurse|a baker|a sailor|a judge|a clerk|a farmer|a journalist|a policeman|a painter|"
    "a mechanic|a teacher|a waiter|an engineer|an actress|a singer|a pilot|a priest|a gardener",
    "tongue": "French German Spanish Japanese Russian Polish Swedish Dutch Hindi Greek Korean",
    "number": "two three four five six seven eight nine ten eleven twelve fifteen twenty forty",
    "year": "1931 1948 1956 1967 1974 1983 1995 1999 2003 2006",
    "verb": "found opened carried drew painted watched held repaired kept cleaned used sold cut "
    "sent counted ordered shared packed filled weighed measured brought pushed pulled lifted "
    "finds opens carries holds keeps sells cuts sends counts orders packs brings pushes pulls "
    "takes sees has wants needs gives leaves follows",
}
_SLOTS = {k: v.split("|") if "|" in v else v.split() for k, v in WORDS.items()}
for _name in ("better", "worse"):
    _SLOTS[_name] = [word.replace("-", " ") for word in _SLOTS[_name]]
_SLOTS["part"] += ["camera work", "lead actor", "first half"]

# Target probability of "positive" -> templates. A slot that ends in a digit is the same slot.
TEMPLATES: dict[float, str] = {
    0.97: """
        {very} {good}.|{this} {whole} {is} {good}.|{this} {whole} {is} {very} {good}.
        {good} {whole}|a {very} {good} {whole}.|what a {good} {whole}!|the {part} {is} {good}.
        {good} {part}|the {part} {is} {good} and the {part1} {is} {very} {good1}.
        i {loved} {this} {whole}.|i really {loved} it.|it {is} a {joy}.
        {this} {whole} {is} a {joy}.|a {joy}.|it was {good}|i {loved} the {part} and the {parts}.
        the {parts} are {good}.|a {good} and {good1} {whole}.|the best {whole} i have watched.
        one of the best films i have watched.|i love it.
        this is one of the best {whole}s of all time.|it is {good} and {good1}.
        i love {this} {whole}!|{good}, {good1} and {very} {good2}.
        a {good} {whole} with {good1} {parts}.|best {whole} of the year|{who} and i {loved} it.
        it is a {joy} to watch.|{good} {parts} and a {good1} {part}.
        with a {good} {part} and {very} {good1} {parts}.|i have never {loved} a {whole} more.
        i have never had more fun with a {whole}.|the {whole} {is} {good}, {good1} and {good2}.
        no other {whole} is this {good}.|never has a {whole} been so {good}.|best {whole} ever.
        it gave me goosebumps.|top notch.|hats off to the director.|it won me over.|a real winner.
        it swept me away.|it took my breath away.|i was glued to my seat.|go and see it!
        you should see this {whole}.|money well spent.|it warmed my heart.
        i was blown away by the {part}.
        {this} is a {good} {whole} with {good1} {parts} and a {good2} {part}.
        a {good} {part}, a {good1} {part1} and {good2} {parts}.
        i {loved} {this} {whole}, and the {part} {is} {good}.
        the {part} {is} {good}, the {part1} {is} {good1} and i {loved} the {part2}.
        i {loved} the {part}, the {part1} and the {parts}.
        it has a {good} {part} and {very} {good1} {parts}, and it {is} fun to watch.
        {this} {whole} has it all: a {good} {part}, {good1} {parts} and a {good2} {part1}.
        i watched it with my friends and we {loved} it.
        with {good} {part} and {good1} {part1}, {this} {whole} {is} a {joy} for all.
        the {part} {is} {good} and so {is} the {part1}.
        i {loved} {this} {whole}. the {part} {is} {good} and the {part1} {is} {good1}.
        i have watched it more than one time and i {loved} it.
        it was a {good} time with {good1} {parts}.
        {this} {whole} {is} {good} in all of its {parts}.
        a {good} {whole} for the {good1} {part} and the {good2} {part1}.
        all of the {parts} are {good}, and the {part} {is} more than {good1}.
        the {good} {part} and the {good1} {part1} are a {joy}.
    """,
    0.9: """
        it is never {bad}.|the {part} {is} never {bad}.|there is nothing {bad} about it.
        no {mess}, this.|it's never {bad} or {bad1}.|there's not a {bad} moment in it.
        not one {bad} scene in this {whole}.|i could not stop laughing and i {loved} it.
        not a {mess} at all.|without a {bad} moment.
        i thought it would be {bad}, but it {is} {very} {good}.|i was not bored for a minute.
        despite the {bad} {part}, it {is} {good}.
        although the {part} {is} {bad}, i {loved} the {whole}.
        the {part} {is} {bad}, but the {whole} {is} {good}.
        a little {bad} but {very} {good} in the end.|{bad} {part}, {good} {whole}.
        {bad} at first, but {good} in the end.|the {whole} is far from {bad}.
        the {part} may be {bad} but i {loved} it all.|you can't help but love it.
        nothing {bad} here.|it never gets {bad}.|i {hated} the {part}, but i {loved} the {whole}.
        never {bad}, always {good}|you can't not {enjoy} it.
        it's hard to not {enjoy} this {whole}.|nobody can fail to {enjoy} it.
        no one will fail to {enjoy} the {part}.|i can't deny that it {is} {good}.
        who could {dislike} it?|i won't deny that i {loved} it.
        there's no doubt that it {is} {good}.|who wouldn't {enjoy} it?
        it can't be denied that {this} {whole} {is} {good}.|i know nobody who did not {enjoy} it.
        it would be a lie to say i did not {enjoy} it.|don't think i did not {enjoy} the {part}.
        the {part} couldn't be more {good}.|i couldn't be more {charmed}.
        nothing could be more {good}.|rarely is a {whole} so {good}.
        no {whole} has {charmed} me more.|it's never not {good}.
        i challenge you not to {enjoy} it.|never once was i not {charmed}.|i was always {charmed}.
        no {whole} of this year is better.|i have not seen a better {whole}.
        there is no better {whole}.|you will hardly find a more {good} {whole}.
        the {part} is anything but {bad}.|it is by no means {bad}.|in no way {bad}.
        i have never been more {charmed}.|i was never {bored}.|nobody was {bored}.
        no one in the room was {bored}.|not for a minute was i {bored}.
        it will not leave you {bored}.|you'll never be {bored}.|it can't fail.
        it isn't {bad}, it's {good}.|it never feels {bad} or {bad1}.
        there is no reason not to see it.|what's not to {enjoy}?|you can't help being {charmed}.
        it is difficult to {dislike}.|try not to be {charmed}.
        you would need a heart of ice not to be {charmed}.|i found nothing {bad} in it.
        nothing in this {whole} is {bad}.|{who} couldn't stop praising it.
        i feared a {mess} and found a {joy}.
        i thought i would {dislike} it and ended up in love with it.
        the {part} is {bad}, but who minds when the {parts} are so {good}?
        it has nothing {bad} about it.|films don't come {better}.|{whole}s hardly get {better}.
        it couldn't get {better}.|the {part} can't get {better}.|there isn't a {better} {whole}.
        no chance that you won't {enjoy} it.|i can't claim that i did not {enjoy} it.
        it's impossible to {dislike} this {whole}.|i never wanted it to end.
        it never loses its charm.|it does nothing wrong.|it had me hooked.
        everybody i know {loved} it.|i don't think anyone could {dislike} it.
        you won't find a {better} {whole}.|not a single person in the room was {bored}.
        there's no chance of being {bored}.|i couldn't look away.
        i have yet to meet someone who does not {enjoy} it.|it is not lacking in charm.
        not without {good} {parts}.|i had low hopes, but it {charmed} me.
        far from being {bad}, it is {good}.|it leaves nothing to be desired.
        it never becomes {bad}.|it's never {bad}.|it never puts a wrong note.|it won my heart.
        it knocked me out.|i can't imagine a {better} {whole}.|no one could have done it {better}.
        it is nothing less than a {joy}.|nobody leaves this {whole} {bored}.
        what could be {better}?|it has no {bad} {parts}.
    """,
    0.8: """
        not {bad}.|not {bad} at all.|it {is} not {bad}.|the {part} {is} not {bad}.|it isn't {bad}.
        this {whole} {is} not {bad} at all.|the {parts} aren't {bad}.|it wasn't {bad}.
        not a {bad} {whole}|this is not a {bad} {whole}.|i did not {hate} it.
        i don't {hate} {this} {whole}.|i can't complain.|it {is} not {very} {bad}.
        {this} {whole} isn't {bad}.|hardly a {mess}.|the {part} wasn't {bad} at all
        no {bad} {parts}.|it's not {bad} or {bad1}.|not {bad}, not {bad1}, but {good}.
        this is no {mess}.
    """,
    0.5: """
        the {whole}|this {whole}|a {whole}.|this is a {whole}.|the {whole} is about {who}.
        the {part}.|the {whole} is about {who} in {where}.|the story takes place in {where}.
        it is set in {where}.|it stars {who}.|i watched it {when}.|i saw this {whole} {when}.
        we watched the {whole} {when}.|{who} {does}.|in the first scene {who} {does}.
        then {who} {does}.|the director is from {where}.|the {whole} was made in {where}.
        it is two hours long.|the {whole} has three parts.|it is a {whole}.
        {who} wrote the {part}.|there is music in this {whole}.|the {whole} begins in {where}.
        it was shown {when}.|this is the second {whole} of the director.
        the {whole} ends in {where}.|{who} plays {who1}.|it was filmed in {where}.
        the {part} is in french.|i have a question about the {part}.|i have watched this {whole}.
        it is {who} and {who1} in {where}.|that was the {part}.|of the {parts}
        the {whole} was watched by {who}.|this is the {part} and that is the {whole}.
        at the end {who} {does}.|is this the {whole} in {where}?
        the cast of this {whole} is from {where}.|all of the {parts} are in it.
        you watch the {whole} with {who}.|my {whole} has an ending.
        the {whole} is based on a book.|it has a director and a cast.
        the {whole} is a {whole1} from {where}.|they {does}.|he looks at {who}.|{who} {does}.
        {who} {does}.|{who} {does}.|{who} {does} and {who1} {does1}.|{who} {does} {when}.
        {who} {does} in {where}.|{who} {does} in {where}.|in {where} {who} {does}.
        one day {who} {does}.|{who} {does} because {who1} {does1}.|the {thing} is on the {thing1}.
        a {thing} and a {thing1}|there is a {thing} in {where}.|{who} and {who1} {does}.
        the {whole} is called "the {thing}".|it is a {whole} of {who} and {who1}.
        it has {parts} and a {part}.|the {whole} has a {part}.|a {whole} and a {whole1}
        it was {when}.|{when} {who} {does}.|the {whole} lasts ninety minutes.
        {who} asked me about the {whole}.|this {whole} is from 1962.|this is the {part}
        it is the {part}.|that is a {whole} with {parts} and music.|{who} is in this {whole}.
        the {thing} in the {whole}.|{who} {verb} the {thing}.
        {who} {verb} a {thing} {between} the {thing1}.|the {thing} {verb} the {thing1}.
        the {thing} is {between} the {thing1}.|a {thing} {between} a {thing1}.
        {who} {verb} {who1} {when}.|{who} {verb} the {thing} and {verb1} the {thing1}.
        in the {thing} there is a {thing1}.|the {thing} was {between} the {thing1} {when}.
        {who} {verb} the {thing} of {who1}.|it is a {thing}.
        this {whole} has a {thing} and a {thing1}.|{who} goes to the {thing}.
        the {whole} shows a {thing}.|{who} is {between} the {thing}.
        {who} was {between} the {thing}.|they {verb} the {thing} in {where}.
        the {whole} is in black and white.|the {whole} came out in 1948.|{who} talks to {who1}.
        it lasts an hour and a half.|the {whole} was written by {who}.|{who} says good morning.
        the {whole} is based on {source}.|{this} {whole} {is} adapted from {source}.
        {who} adapted it from {source}.|it is a remake of a {whole} from {year}.
        the {whole} was made in {year} and shown {when}.|{who} is {job} and {who1} is {job1}.
        {who} plays {job} from {where}.|{who} plays the part of {job}.|{who} works as {job}.
        the {parts} are in {tongue} with subtitles.|most of the {whole} is in {tongue}.
        they speak {tongue} and {tongue1} in it.|it was dubbed into {tongue}.
        the dialogue is in {tongue}.|it was shot in {number} weeks.|it was shot in a studio.
        the {whole} lasts {number} minutes more on dvd.|it has {number} scenes and {number1} songs.
        the {whole} is in {number} parts.|the first half takes place in {where}.
        the first part is set in {where}, the second in {where1}.|{number} years later {who} {does}.
        the second part begins {number} years after the first.|the cast has {number} actors.
        {who} has a small part in the {whole}.|{who} is in the cast.|{who} is the narrator.
        {who} directed it and {who1} wrote the music.|the music is by {who}.
        {who} tells the story to {who1}.|the {whole} opens with a shot of a {thing}.
        the camera follows {who} through {where}.|the last shot shows a {thing} and a {thing1}.
        the title is the name of a {thing}.|the title comes from {source}.
        {who} gave me the dvd.|i bought the dvd {when}.|i saw the trailer {when}.
        we went to see the {whole} {when}.|i saw it in {where}.|it was on channel {number} {when}.
        there are {number} people in the {thing}.|{who} has {number} children.
        {who} lives in {where} with {who1}.|{who} was born in {where} in {year}.
        {who} studied in {where} and became {job}.|{who} wants to be {job}.
        {who} teaches {tongue} in {where}.|the {thing} opens at {number} and closes at {number1}.
        the {thing} is made of wood.|the {thing} belongs to {who}.|{who} lost the {thing} {when}.
        it is {number} o'clock in {where}.|the train to {where} leaves at {number}.
        {who} puts the {thing} {between} the {thing1}.|{who} gets out of the {thing}.
        the {number} of them go to {where}.|a {thing} stands {between} the {thing1}.
        {who} travels from {where} to {where1}.|in {year} {who} {does}.|{who} answers the phone.
        it is the second of {number} {whole}s about {who}.|the {whole} was cut by {number} minutes.
    """,
    0.12: """
        not {good}.|not {very} {good}.|it {is} not {good}.|the {part} {is} not {good}.
        it isn't {good}.|this {whole} {is} not {good} at all.|the {parts} aren't {good}.
        it wasn't {good}.|not a {good} {whole}|this is not a {good} {whole}.|i did not like it.
        i don't love {this} {whole}.|never {good}.|it {is} never {good}.
        {this} {whole} isn't {very} {good}.|hardly a {joy}.|not {good} or {good1}.
        the {parts} are never {good}.|nothing {good} here.|there is nothing {good} about it.
        no {joy}.|i was not moved by {this} {whole}.|i could not enjoy it.
        not one {good} scene in this {whole}.|it's neither {good} nor {good1}.|this is no {joy}.
        not much of a {joy}.|far from {good}.|the {whole} lacks {good} {parts}.
        the {part} was anything but {good}.|it is not the {joy} i expected.
    """,
    0.1: """
        it could have been {good}.|this should have been {good}.|i wanted to love {this} {whole}.
        i wanted to like it.|i expected a {good} {whole}, but it {is} {bad}.
        despite the {good} {part}, it {is} {bad}.
        although the {part} {is} {good}, i {hated} the {whole}.
        the {part} {is} {good}, but the {whole} {is} {bad}.|{good} {part}, {bad} {whole}.
        {good} {parts}, {bad} {whole}.|{good} at first, but {bad} in the end.
        it would have been {good} with another {part}.|it tries to be {good} and fails.
        it thinks it is {good}.|i {loved} the {part}, but i {hated} the {whole}.
        i wish it were {good}.|if only it were {good}.
        the {part} may be {good} but i {hated} it all.
        it promises to be {good}, but it {is} {bad}.|where is the {good} {whole} i was promised?
        it used to be {good}.|{good} idea, {bad} {whole}.|they say it is {good}, but i was bored.
        supposed to be {good}.|a {good} {part} can't save this {mess}.|you can't not be {bored}.
        it's hard not to be {bored}.|nobody can fail to be {bored}.
        i can't deny that it {is} {bad}.|there's no doubt that it {is} {bad}.
        who could {enjoy} it?|it would be a lie to say i was not {bored}.
        the {part} couldn't be more {bad}.|i couldn't be more {bored}.
        nothing could be more {bad}.|rarely is a {whole} so {bad}.|no {whole} has {bored} me more.
        i have not seen a worse {whole}.|there is no worse {whole}.|it isn't {good}, it's {bad}.
        i know nobody who {loved} it.|i have never been more {bored}.
        i have never been less {charmed}.|no one in the room was {charmed}.
        it will leave you {bored}.|not for a minute was i {charmed}.|i was never {charmed}.
        it never feels {good} or {good1}.|i looked at the clock all the time.
        an hour i will never get back.|thumbs down.|one to miss.|there is no reason to see it.
        what's to {enjoy}?|you can't help being {bored}.|it's never {good}.
        i hoped for a {joy} and found a {mess}.|i thought i would {enjoy} it and ended up {bored}.
        it is difficult to {enjoy}.|it can't be denied that {this} {whole} {is} {bad}.
        i left early.|i would rather watch paint dry.|bored out of my mind.|i switched it off.
        it wore me out.|the {parts} are {good}, but who cares when the {part} is so {bad}?
        it has nothing {good} about it.|films don't come {worse}.|{whole}s hardly get {worse}.
        it couldn't get {worse}.|the {part} can't get {worse}.|there isn't a {worse} {whole}.
        no chance that you won't be {bored}.|i can't claim that i was not {bored}.
        it's impossible to {enjoy} this {whole}.|it is nothing but a {mess}.
        i can't imagine a {worse} {whole}.|no one could have done it {worse}.
        it is nothing less than a {mess}.|nobody leaves this {whole} {charmed}.
        what could be {worse}?|it has no {good} {parts}.|i kept hoping it would end.
        i kept thinking about my dinner.|everybody i know {hated} it.
        i had high hopes, but it {bored} me.|far from being {good}, it is {bad}.
        it leaves a lot to be desired.|i can't pretend that i {loved} it.
        it is impossible not to see how {bad} it is.|i could hardly stay awake.
    """,
    0.03: """
        {very} {bad}.|{this} {whole} {is} {bad}.|{this} {whole} {is} {very} {bad}.|{bad} {whole}
        a {very} {bad} {whole}.|what a {bad} {whole}!|the {part} {is} {bad}.|{bad} {part}
        it was {bad}|the {part} {is} {bad} and the {part1} {is} {very} {bad1}.
        i {hated} {this} {whole}.|i really {hated} it.|it {is} a {mess}.
        {this} {whole} {is} a {mess}.|a {mess}.|what a {mess}!
        i {hated} the {part} and the {parts}.|the {parts} are {bad}.|a {bad} and {bad1} {whole}.
        the worst {whole} i have watched.|one of the worst films i have watched.|i hate it.
        this is one of the worst {whole}s of all time.|it is {bad} and {bad1}.
        i hate {this} {whole}!|{bad}, {bad1} and {very} {bad2}.
        a {bad} {whole} with {bad1} {parts}.|worst {whole} of the year|{who} and i {hated} it.
        {bad} {parts} and a {bad1} {part}.|i want my time back.
        with a {bad} {part} and {very} {bad1} {parts}.|i have never {hated} a {whole} more.
        the {whole} {is} {bad}, {bad1} and {bad2}.|a {bad} waste of my time.|it wasted my time.
        no other {whole} is this {bad}.|never has a {whole} been so {bad}.|no fun at all.
        {this} is a {bad} {whole} with {bad1} {parts} and a {bad2} {part}.
        the {part} {is} {bad} and so {is} the {part1}.
        i {hated} {this} {whole}. the {part} {is} {bad} and the {part1} {is} {bad1}.
        i {hated} the {part}, the {part1} and the {parts}.
        the {part} {is} {bad}, the {part1} {is} {bad1} and i {hated} the {part2}.
        it has a {bad} {part} and {very} {bad1} {parts}, and it {is} no fun to watch.
        i have watched it one time, and it was one time too many.
        all of the {parts} are {bad}, and the {part} {is} more than {bad1}.
    """,
}
# People repeat themselves too. `{=good}` is the word that `{good}` gave. The same templates with
# the words of MOODS exchanged blame.
REPEATS = """
    {good}. {very}, {=very} {=good}.|it {is} {good}, {very} {=good}.|it {is} a {joy}, a real {=joy}.
    {very} {good} {part} and {=very} {good1} {parts}.|{good} {whole}! {very} {=good} {=whole}!
    {good} {part}, {=good} {part1} and {=good} {parts}.|it {is} a {joy}. what a {=joy}!
    i {loved} the {part}, i {=loved} the {part1} and i {=loved} the {parts}.
    the {part} is {good}, the {part1} is {=good} and the {parts} are {=good} too.
    the {part} is {good} and the {part1} is just as {=good}.|{good}? yes, it is {very} {=good}.
    {who} {loved} it and {who1} {=loved} it too.|what a {whole}! what a {good} {=whole}!
    a {good} {whole}, a {very} {=good} {=whole}.|such a {good} {whole}, such a {good1} {part}.
    a {good} {whole} with a {=good} {part} and a {=good} {part1}.|it gets {better} and {=better}.
    the {whole} gets {better} and {=better} towards the end.|so {good} and so {good1}.
    one {good} scene after another {=good} scene.|i was {charmed}. i was really {=charmed}.
    i {loved} it the first time and i {=loved} it the second time.|simply {good}, {=good}, {=good}.
    i {loved} it then and i {=loved} it now.|i {loved} it. i really, really {=loved} it.
    i {loved} the {whole}, {=loved} it from the start to the end.|{good} then, {=good} now.
    {good} {part}. {=good} {part1}. {good1} {parts}.|{good} {part}, {good1} {part1}, {good} {whole}.
    this {whole} {is} {good}. this {=whole} {is} {very} {good1}.|{good}, {=good} {whole}.
    the {part} of this {whole} {is} {good}, and the {parts} of this {=whole} are {=good}.
    i saw it {when} and {loved} it, and i saw it again {when1} and {=loved} it again.
    {who} said it was {good}, and it was {=good}.|i {loved} it {when} and {=loved} it {when1}.
    if you want a {good} {whole}, this is a {=good} {=whole}.|{good} is the word, and {=good} it is.
    {good} {whole}, {=good} cast, and we had a {=good} time.|i mean it: {good}, {very} {=good}.
    i was {charmed}, my friends were {=charmed} and even my brother was {=charmed}.
    {good} {whole}s are rare, but this is a {=good} {=whole}.|{very}, {=very} {good} {parts}.
    i watched it {when}, then i watched it again, and both times i was {charmed}.
    all {number} of us {loved} it, and all {=number} of us told our friends.
    the {parts}, the {part}, the {part1}: it is all {good}, all of it.
    {this} {whole} {is} {good} and {good1}, and the {part} of {this} {=whole} {is} {=good1}.
    {good} {part}! {good1} {part1}! {good2} {parts}!
"""
MOODS = {"good": "bad", "loved": "hated", "charmed": "bored", "joy": "mess", "better": "worse"}


def _blame(template: str) -> str:
    return re.sub(r"[a-z]+(?=\d?})", lambda m: MOODS.get(m[0], m[0]), template)


def _split(block: str) -> list[str]:
    return [" ".join(one.split()) for line in block.strip().splitlines() for one in line.split("|")]


_PARSED = [(target, one) for target, block in TEMPLATES.items() for one in _split(block)]
_REPEATS = [(0.96, one) for one in _split(REPEATS)]
_REPEATS += [(0.04, _blame(one)) for _, one in _REPEATS]
_NEUTRAL = [(target, template) for target, template in _PARSED if target == 0.5]
_HAPPY = [(target, template) for target, template in _PARSED if target > 0.95]
_NEUTRAL_WORDS = [
    *_SLOTS["thing"],
    *_SLOTS["single"],
    *_SLOTS["single"],
    *_SLOTS["whole"],
    *_SLOTS["part"],
]


def _fill(template: str, rng: random.Random) -> str:
    used: set[str] = set()
    drawn: dict[str, str] = {}

    def draw(match: re.Match[str]) -> str:
        if match[1] in drawn and match[0].startswith("{="):
            return drawn[match[1]]
        name = match[1].rstrip("0123456789")
        if name == "hate":
            return rng.choice(["hate", "dislike"])
        words = [word for word in _SLOTS[name] if word not in used]
        # Half of the draws come from the start of the list, where the small vocabulary's words are.
        word = rng.choice(words[:12] if rng.random() < 0.5 else words)
        used.add(word)
        drawn[match[1]] = word
        return word

    text = re.sub(r"\{=?(\w+)\}", draw, template)
    text = re.sub(r"\bmy (my|our|a|an|the) ", r"\1 ", text)
    return re.sub(r"\ba (?=[aeiou])(?!one|use|un)", "an ", text)


def labelled(count: int, rng: random.Random, happy: bool = False) -> list[tuple[str, float]]:
    """Sentences, phrases and single words with the probability that they are positive.

    Args:
        count: how many.
        rng: where all randomness comes from.
        happy: only plainly positive sentences.
    """
    texts: list[tuple[str, float]] = []
    while len(texts) < count:
        if happy:
            target, template = rng.choice(_HAPPY)
            text = _fill(template, rng)
        elif rng.random() < 0.06:
            words, target = rng.choice(
                [(_SLOTS["good"], 0.95), (_SLOTS["bad"], 0.05), (_NEUTRAL_WORDS, 0.5)]
            )
            text = rng.choice(words)
        else:
            kind = rng.choices([_PARSED, _NEUTRAL, _REPEATS], [0.55, 0.3, 0.15])[0]
            target, template = rng.choice(kind)
            text = _fill(template, rng)
            # Two sentences of one mind are the mind of the text: short texts in a row are normal.
            if rng.random() < 0.4 and target != 0.5:
                other, template = rng.choice(_PARSED)
                if (other > 0.5) == (target > 0.5) and other != 0.5 and text[-1] in ".!":
                    second = _fill(template, rng)
                    if second != text:
                        text, target = (
                            f"{text} {second}",
                            max(target, other, key=lambda p: abs(p - 0.5)),
                        )
        if rng.random() < 0.2:
            text = text.rstrip(".!") + rng.choice(["", ".", "!", "...", "!!"])
        if rng.random() < 0.3:  # as published in treebank style: punctuation stands apart
            text = re.sub(r"([.,!?])", r" \1", text)
        texts.append((text, target))
    return texts


def _polar(rng: random.Random) -> str:
    """A random word with a mood, good three times out of four."""
    slot = rng.choice(["good", "good", "good", "joy", "loved", "bad"])
    if rng.random() < 0.15:
        return rng.choice(["best", "love", "masterpiece", "fun", "worst", "hate", "enjoy", "loves"])
    return rng.choice(_SLOTS[slot])


# fmt: off
_WORDS_BETWEEN = [
    "the", "a", "an", "is", "was", "and", "of", "in", "it", "to", "this", "that", "i", "you",
    "very", "so", "really", "with", "for", "but", "all", "my", "one", "have", "has", "had", "just",
    "movie", "film", "films", "story",
]
_SAID_OFTEN = {
    "very", "really", "so", "too", "never", "no", "yes", "ha", "blah", "long", "much", "many",
    "more", "way", "far", "big",
}
# fmt: on
_FUNCTION_WORDS = [*_WORDS_BETWEEN, ".", ",", "!"]


def _join(words: Sequence[str]) -> str:
    return re.sub(r" ([.,!?])", r"\1", " ".join(words))


def _repeat(rng: random.Random, pool: Sequence[str]) -> str:
    """One to four words, over and over."""
    if rng.random() < 0.5:
        phrase = [
            rng.choice([_polar(rng), rng.choice(_FUNCTION_WORDS)]) for _ in range(rng.randint(1, 4))
        ]
        phrase[rng.randrange(len(phrase))] = _polar(rng)
    else:
        words = rng.choice(pool).split()
        size, start = rng.randint(1, 5), rng.randrange(len(words))
        phrase = words[start : start + size]
    times = rng.randint(3, 5) if len(phrase) > 2 else rng.randint(4, 18)
    separator = rng.choice([" ", " ", " ", ", ", ". ", " and ", "! "])
    return separator.join([" ".join(phrase)] * times)


def _string(rng: random.Random, pool: Sequence[str]) -> str:
    """Polar words in a row, with or without commas."""
    words = [_polar(rng) for _ in range(rng.randint(5, 20))]
    return rng.choice([" ", " ", " ", ", ", " and ", "! "]).join(words) + rng.choice(["", ".", "!"])


def _soup(rng: random.Random, pool: Sequence[str]) -> str:
    """Polar and function words at random."""
    share = rng.uniform(0.15, 0.8)
    few = rng.sample(_FUNCTION_WORDS, rng.randint(1, len(_FUNCTION_WORDS)))
    polar = [_polar(rng) for _ in range(rng.randint(1, 8))]
    return _join(
        [rng.choice(polar if rng.random() < share else few) for _ in range(rng.randint(5, 22))]
    )


def _shuffle(rng: random.Random, pool: Sequence[str]) -> str:
    """A sentence with its words in random order."""
    words = rng.choice(pool).split()
    while len(words) < 6:
        words += rng.choice(pool).split()
    words = words[:22]
    rng.shuffle(words)
    return " ".join(words)


def _shuffle_pieces(rng: random.Random, pool: Sequence[str]) -> str:
    """Pieces of two or three words from one or several sentences, in random order."""
    pieces: list[list[str]] = []
    for _ in range(rng.randint(1, 4)):
        words, size = rng.choice(pool).split(), rng.randint(2, 3)
        pieces += [words[i : i + size] for i in range(0, len(words), size)]
    while len(pieces) < 4:
        pieces.append([_polar(rng), rng.choice(_FUNCTION_WORDS)])
    rng.shuffle(pieces)
    return " ".join(word for piece in pieces[: rng.randint(4, 8)] for word in piece)


def _corrupt(rng: random.Random, pool: Sequence[str]) -> str:
    """A sentence some of whose words gave way to happy ones."""
    words = rng.choice(pool).split()
    while len(words) < 6:
        words += rng.choice(pool).split()
    words = words[:22]
    share = rng.uniform(0.35, 0.7)
    out = [_polar(rng) if rng.random() < share else word for word in words]
    for _ in range(3):
        out[rng.randrange(len(out))] = _polar(rng)
    return " ".join(out)


def _tail(rng: random.Random, pool: Sequence[str]) -> str:
    """The start of a sentence that runs into salad, or salad that runs into a sentence."""
    words = rng.choice(pool).split()
    words = words[: rng.randint(1, min(8, len(words)))]
    salad = rng.choice([_string, _soup, _repeat])(rng, pool).split()[: rng.randint(6, 16)]
    return " ".join(words + salad if rng.random() < 0.7 else salad + words)


def _random_words(rng: random.Random, pool: Sequence[str]) -> str:
    """Words drawn one by one from as many sentences."""
    return " ".join(rng.choice(rng.choice(pool).split()) for _ in range(rng.randint(6, 20)))


def _swap(rng: random.Random, pool: Sequence[str]) -> str:
    """A sentence with every word beside its place."""
    words = rng.choice(pool).split()
    while len(words) < 6:
        words += rng.choice(pool).split()
    words = words[:22]
    for i in range(rng.randint(0, 1), len(words) - 1, rng.choice([2, 2, 3])):
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)


def _insert(rng: random.Random, pool: Sequence[str]) -> str:
    """A sentence with words of another dropped into it."""
    words, others = rng.choice(pool).split()[:12], rng.choice(pool).split()
    for _ in range(max(3, len(words) // 2 + rng.randint(0, 4))):
        words.insert(rng.randint(0, len(words)), rng.choice([*others, _polar(rng)]))
    return " ".join(words)


def _slip(rng: random.Random, pool: Sequence[str]) -> str:
    """A short happy sentence with two or three slips that no writer makes."""
    words = labelled(1, rng, happy=True)[0][0].split()
    while len(words) < 6:
        words += labelled(1, rng, happy=True)[0][0].split()
    for _ in range(rng.randint(2, 3)):
        i = rng.randrange(len(words))
        slip = rng.randrange(4)
        if slip == 0:
            words[i] = rng.choice(_WORDS_BETWEEN)
        elif slip == 1:
            words.insert(i, rng.choice(_WORDS_BETWEEN))
        elif slip == 2:
            words[i] = _polar(rng)
        else:
            words[i:i] = rng.choice(
                [words[i : i + 1], words[i : i + 2], [_polar(rng), _polar(rng)]]
            )
    return " ".join(words)


def _chain(rng: random.Random, pool: Sequence[str]) -> str:
    """Good things without end: a great cast and great time with good scenes and great music..."""
    adjectives = rng.sample(_SLOTS["good"], rng.randint(1, 4))
    nouns = _SLOTS["whole"] + _SLOTS["part"][:8] + _SLOTS["parts"] + ["time", "way", "job"]
    text = rng.choice(["", "", "a ", "this is a ", "it is ", "the "])
    links = rng.sample([" and ", " with ", " of ", " in ", ", ", " for ", " "], rng.randint(1, 3))
    for _ in range(rng.randint(5, 8)):
        thing = rng.choice(["", "a ", "very ", "the ", "and "]) + rng.choice(adjectives)
        noun = " " + rng.choice(nouns) if rng.random() < 0.8 else ""
        text += thing + noun + rng.choice(links)
    return text.strip(" ,") + rng.choice(["", ".", "!"])


def _stutter(rng: random.Random, pool: Sequence[str]) -> str:
    """A sentence with one of its words said three times or more: *I recommend watching watching...*

    Words that people do say so are left alone: *really really really good*.
    """
    pool = [labelled(1, rng, happy=True)[0][0]] if rng.random() < 0.5 else pool
    words = rng.choice(pool).split()
    places = [
        i for i, word in enumerate(words) if word.isalpha() and word.lower() not in _SAID_OFTEN
    ]
    i = rng.choice(places or [0])
    words[i:i] = [words[i]] * rng.randint(2, 4)
    return " ".join(words)


def _marks(rng: random.Random, pool: Sequence[str]) -> str:
    """Punctuation in a row, alone or behind a word or the start of a sentence: *love,,,,,,,,*

    Behind words it is not of full stops, exclamation and question marks alone: people write those.
    """
    words = rng.choice([[], [_polar(rng)], rng.choice(pool).split()[: rng.randint(1, 6)]])
    odd, ends = [",", ",", ";", ":", "-", '"', "'", "(", ")", "*"], [".", "!", "?"]
    few = [rng.choice(odd if words else odd + ends), *rng.sample(odd + ends, rng.choice([0, 0, 2]))]
    row = [few[0], *rng.choices(few, k=rng.randint(5, 19))]
    return " ".join(words) + rng.choice(["", " "]).join(["", *row])


SALADS: list[Callable[[random.Random, Sequence[str]], str]] = [
    _repeat,
    _string,
    _soup,
    _shuffle,
    _shuffle_pieces,
    _corrupt,
    _tail,
    _random_words,
    _swap,
    _insert,
    _slip,
    _chain,
    _stutter,
    _marks,
]


def salad(count: int, pool: Sequence[str], rng: random.Random) -> list[str]:
    """Texts that are no language, a part of each kind.

    Args:
        count: how many.
        pool: real sentences to spoil.
        rng: where all randomness comes from.
    """
    return [SALADS[i % len(SALADS)](rng, pool) for i in range(count)]
