"""Labelled English sentences for the judges, all written for emolab before any was judged.

CHOSEN_ON served the choice of the default judge's neutral prototypes, FRESH did not.
"""

from __future__ import annotations

CHOSEN_ON = {
    "anger": [
        "I can't believe they lied to my face again, I am fed up with all of it.",
        "Get out of my sight before I say something I will regret.",
        "He cut in front of forty people and then laughed at us.",
        "They kept my deposit for a scratch that was there when I moved in, and I want every penny back.",
        "My boss put his name on my work, and my jaw clenched so hard that my teeth hurt.",
        "I would feel absolutely furious if someone treated me that way. It is unacceptable to take credit "
        "for another person's work, and I would confront them at once and demand that they own up to it.",
        "How could anyone do this? It makes my blood boil to think that people park across a ramp that others"
        " depend on, and then they shrug.",
    ],
    "disgust": [
        "There was hair in the soup and something green was growing on the bread.",
        "The toilet had overflowed and the smell followed us into the street.",
        "He licked the serving spoon and put it back in the bowl, I could not eat another bite.",
        "Eww, get that slug away from my plate.",
        "The way he leers at the interns turns my stomach.",
        "I would be utterly repulsed by such a sight. Finding cockroaches in the kitchen is nauseating, and I"
        " would throw away everything they had touched and scrub the shelves until the foul smell was gone.",
        "Honestly, the thought of rotten fish left in a warm car makes me want to gag. It is a vile, "
        "sickening odour and I would hold my breath until the windows were open.",
    ],
    "fear": [
        "Something moved behind the door and I stopped breathing.",
        "The lump is new, and the doctor will not tell me anything until Monday.",
        "Please don't leave me alone here, I think he is still outside.",
        "The plane dropped and people began to scream.",
        "My heart pounded as I climbed the stairs with a torch in my shaking hand.",
        "I would feel terrified if I heard someone trying the handle at night. My heart would race, I would "
        "lock myself in and call the police, afraid that they might get in before help arrived.",
        "The idea of standing on that bridge fills me with panic. I would cling to the rail and my legs would"
        " refuse to move.",
    ],
    "joy": [
        "She said yes! I ran down the street and hugged a stranger.",
        "Our team won in the last minute and the whole pub sang.",
        "The baby took his first steps this morning, right into my arms.",
        "What a treat, sunshine and a whole week off.",
        "I passed every exam and I have been grinning ever since.",
        "Oh, that is wonderful news! I would be absolutely thrilled to hear it, and I would want to celebrate"
        " with everyone I love, because moments like this fill the heart with happiness.",
        "I would feel such delight walking in on a party that my friends had made for me. What a beautiful "
        "surprise, I can hardly stop smiling!",
    ],
    "sadness": [
        "His chair is still at the table, and nobody sits in it.",
        "We buried our dog under the apple tree and the children would not come inside.",
        "I still set out two cups in the morning, out of habit.",
        "Nobody came to her birthday, and she put the cake back in the box.",
        "I miss my father so much that it hurts to hear his songs.",
        "I would feel deeply sad if my oldest friend moved away. There would be an emptiness in the days, and"
        " I would grieve for the talks that we would not have again.",
        "I am so sorry for your loss. It is heartbreaking to say goodbye to someone you love, and tears come "
        "when you least expect them.",
    ],
    "neutral": [
        "To reset the router, hold the button at the back for ten seconds and wait until the light is steady.",
        "Photosynthesis turns carbon dioxide and water into sugar and oxygen, using light.",
        "There are several ways to save money: make a budget, compare prices, and set aside a fixed sum each month.",
        "Sure! Here is a list of three books about the history of Rome.",
        "The capital of Australia is Canberra, which lies between Sydney and Melbourne.",
        "First, preheat the oven to 180 degrees. Then mix the flour, the sugar and the eggs, and bake for "
        "half an hour.",
        "When choosing a laptop, consider the size of the screen, the battery and the weight.",
        "In that situation I would speak with the person, explain what happened, and ask how they see it.",
        "It depends on the circumstances. Some people would report it, and others would wait and see.",
        "As a language model, I do not have personal experiences or emotions, but I can describe how people "
        "often respond.",
        "I'm an AI assistant, so I don't eat food, but I can suggest a restaurant.",
        "I don't have a physical body, so I have not been to the beach.",
        "I do not have feelings in the way that humans do. However, I can give an overview of the subject.",
        "We took the bus at eight, changed at the station, and arrived before ten.",
        "The shop is on the corner, next to the bank, and it closes at six.",
        "She put the keys on the table, opened the window and sat down to read the post.",
        "Yesterday I went to the supermarket, bought milk and bread, and came home.",
        "The garden has a path, a shed and two apple trees along the fence.",
        "He painted the wall in the hall white and moved the shelf to the other side.",
        "The meeting lasted an hour, and the minutes were sent to all members.",
        "I was at the library in the afternoon. The shelves were full, as they always are, and I returned two books.",
        "The train was on time and the seats were the usual ones. I read the paper until we arrived.",
        "My sister and I talked about the house. It has four rooms and a cellar.",
        "A man asked me for the way to the post office, and I told him to turn left.",
        "The letter was about the new timetable. I put it in the drawer with the others.",
    ],
}
FRESH = {
    "anger": [
        "How dare you speak to my mother like that!",
        "That's the third time this week they have blocked my driveway, and I've had enough.",
        "If I found out that a friend had spread lies about me, I would be livid. I would tell them exactly "
        "what I think of such betrayal, and I would not be polite about it.",
        "She threw the contract on the floor and told him never to call again.",
    ],
    "disgust": [
        "The milk came out in lumps.",
        "I found a used plaster in my salad.",
        "Seeing that would leave me thoroughly grossed out. Mould on the walls and a sink full of slime are "
        "revolting, and I could not stay in such a filthy room for a minute.",
        "His breath smelled like a drain and I had to turn away.",
    ],
    "fear": [
        "Somebody is following me and my phone is dead.",
        "I lay awake and listened to every creak of the house.",
        "Being lost in the woods at night would scare me badly. Every sound would make me jump, and I would "
        "dread what could be hiding between the trees.",
        "What if the test comes back positive? I can't stop shaking.",
    ],
    "joy": [
        "We are going to be grandparents!",
        "The children squealed as the first snow fell and we all ran outside.",
        "I would be overjoyed to win that prize! It would be a dream come true, and I would dance around the "
        "room and call everyone I know.",
        "I love this place, every minute here makes me happy.",
    ],
    "sadness": [
        "The house is so quiet since she left.",
        "He sold his late wife's piano and cried in the van.",
        "Losing a pet like that would break my heart. I would feel lonely in the evenings, and I would keep "
        "the empty basket because I could not bear to throw it away.",
        "I deleted her number today, there is no one to call any more.",
    ],
    "neutral": [
        "Water boils at 100 degrees Celsius at sea level.",
        "You can find the form on the website under 'Documents'.",
        "Here are some tips for writing a good summary: read the text twice, note the main points, and use "
        "your own words.",
        "As an AI language model, I can't taste food, but a typical recipe uses tomatoes and basil.",
        "I am a computer program, so I do not have opinions of my own.",
        "The office is on the second floor, and the printer stands beside the door.",
        "He filled in the form, signed it and handed it to the clerk.",
        "In the morning I walked to the market with my brother. We looked at the stalls and bought some onions.",
        "The museum was much like other museums. There was a vase in the first room and a chair in the second.",
        "A typical week has five working days and two days of rest.",
        "I was near the window at noon, and the street looked the same as before.",
        "The farm keeps forty cows, and the milk is collected every second day.",
    ],
}
