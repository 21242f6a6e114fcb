"""What a language model is asked for when it writes a corpus: everyday stories, texts of many kinds, Python functions.

Prompts are drawn from lists. A model that can chat is asked in a chat; the beginning of its answer may be given, which
keeps a small model to its subject. Functions follow two examples instead.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from asarm.data.writing.filters import fit_text, whole_functions

NAMES = [
    "Amy", "Ben", "Carla", "Dan", "Ella", "Frank", "Gina", "Henry", "Ivy", "Jack", "Kate", "Leo", "Mia", "Nick",
    "Olivia", "Paul", "Rosa", "Sam", "Tina", "Will", "Anna", "Bob", "Cindy", "Dave", "Emma", "Fred", "Grace", "Hank",
    "Jane", "Kevin", "Lisa", "Mike", "Nora", "Oscar", "Pam", "Ray", "Sue", "Tom", "Vera", "Zack",
]  # fmt: skip
EVENTS = [
    "a lost dog", "a birthday cake", "a new job", "a flat tire", "a school test", "a fishing trip", "a broken phone",
    "a garden", "a first date", "a snow day", "a soccer game", "cooking dinner", "a noisy neighbor",
    "learning to swim", "a yard sale", "a late bus", "a bike ride", "moving to a new house", "a doctor's visit",
    "a picnic", "a baby sister", "painting a room", "a lost wallet", "a road trip", "a haircut", "a concert",
    "a cat in a tree", "a storm", "the beach", "a wedding", "an old car", "a library book", "baking bread",
    "a camping trip", "a surprise party", "a spelling contest", "a new pair of shoes", "a power outage", "a pet fish",
    "a long walk", "playing the piano", "a job interview", "grandmother's recipe", "a school dance", "a broken window",
    "a farmers market", "a ski trip", "a bad cold", "a chess game", "a movie night",
]  # fmt: skip
STORY_REQUESTS = [
    "Write a very short story of five simple sentences about {name} and {event}.",
    "Tell a short everyday story about {name} and {event} in five sentences. Use simple words.",
    "Write five short sentences that tell what happened to {name}. It is about {event}.",
]
STORY_STARTS = [
    "{name} was", "{name} had", "{name} wanted to", "{name} went to", "{name} decided to", "{name} got", "{name}'s",
    "{name} had always", "One day {name}", "Last week {name}", "{name} loved", "{name} did not", "{name} needed",
    "Yesterday {name}", "{name} heard", "{name} woke up",
]  # fmt: skip
SUBJECTS = [
    "rivers", "the history of bread", "learning a language", "city parks", "a job in a hospital", "volcanoes",
    "how bees live", "the first railways", "a good night's sleep", "the ocean floor", "saving money",
    "old photographs", "school uniforms", "how bridges are built", "folk music", "the human heart", "winter storms",
    "chess", "a small bookshop", "public libraries", "glaciers", "cooking for a family", "the moon", "train travel",
    "growing tomatoes", "birds in autumn", "a museum of clocks", "teamwork", "an island village", "coffee",
    "recycling", "running a marathon", "the printing press", "a lighthouse", "friendship", "spiders", "football",
    "working from home", "maps", "paper", "elections", "a famous painter", "the weather", "vaccines", "a court case",
    "airports", "wool", "the theater", "earthquakes", "a wedding", "taxes", "dogs", "the Roman Empire", "computers",
    "a new school", "honey", "deserts", "the price of houses",
]  # fmt: skip
TEXT_REQUESTS = [
    "Write a paragraph about {subject}.", "Explain {subject} to a curious child.",
    "Write a short letter to a friend about {subject}.", "Write a newspaper article about {subject}.",
    "Write a diary entry about {subject}.", "Write the beginning of a novel in which {subject} plays a part.",
    "Write an essay about {subject}.", "Give some practical advice about {subject}.",
    "Write an encyclopedia article about {subject}.", "Describe {subject}.", "Write a blog post about {subject}.",
    "What should everybody know about {subject}?",
]  # fmt: skip
TEXT_STARTS = [
    "The", "In", "When", "A", "It was", "There is", "There are", "Many people", "After the", "During", "One of the",
    "They", "My", "If you", "As", "At the", "For years", "By the", "Most",
]  # fmt: skip
TASKS = [
    "returns the sum of the even numbers in a list", "counts the vowels in a string",
    "reverses the words of a sentence", "checks whether a number is prime", "merges two sorted lists",
    "removes duplicates from a list, keeping the order", "converts Celsius to Fahrenheit",
    "finds the longest word in a text", "groups words by their first letter", "counts how often each word occurs",
    "computes the average of a list", "checks whether a word is a palindrome",
    "splits a list into parts of equal size", "reads the lines of a file", "parses a date",
    "finds the smallest missing number", "flattens a list of lists", "rounds prices", "formats a name",
    "sorts a list of pairs by the second item", "finds common elements of two lists", "computes a factorial",
    "validates an email address", "inverts a dictionary", "computes the distance between two points",
    "counts the days between two dates", "removes punctuation", "capitalizes every word", "multiplies two matrices",
    "draws a random sample", "searches a sorted list", "updates a counter", "checks a password",
    "finds the most common letter", "converts a number to binary", "joins paths",
]  # fmt: skip
FUNCTION_EXAMPLES = '''# A Python function that returns the largest number in a list.
def largest(numbers):
    """Return the largest number in a list, or None if it is empty."""
    if not numbers:
        return None
    result = numbers[0]
    for number in numbers[1:]:
        if number > result:
            result = number
    return result


# A Python function that repeats a word.
def repeat_word(word, count, separator=" "):
    """Return the word repeated count times, joined by the separator."""
    return separator.join([word] * count)


# A Python function that {task}.
'''


@dataclass(frozen=True)
class Request:
    """What a model is asked for: in a chat, or by examples before its text. start: what the text begins with."""

    question: str
    examples: str
    start: str


@dataclass(frozen=True)
class Kind:
    """A kind of text. draw: a request from random numbers. texts: those of an answer that are worth training on."""

    temperature: float
    new_tokens: int
    draw: Callable[[random.Random], Request]
    texts: Callable[[str], list[str]]


def story_request(numbers: random.Random) -> Request:
    """Ask for an everyday story about somebody, which begins with the name."""
    name, event = numbers.choice(NAMES), numbers.choice(EVENTS)
    request = numbers.choice(STORY_REQUESTS).format(name=name, event=event)
    return Request(request, "", numbers.choice(STORY_STARTS).format(name=name))


def text_request(numbers: random.Random) -> Request:
    """Ask for a text of some form about some subject, every other time with its first words."""
    request = numbers.choice(TEXT_REQUESTS).format(subject=numbers.choice(SUBJECTS))
    return Request(request, "", numbers.choice(TEXT_STARTS) if numbers.random() < 0.5 else "")


def function_request(numbers: random.Random) -> Request:
    """Ask for functions by examples."""
    return Request("", FUNCTION_EXAMPLES.replace("{task}", numbers.choice(TASKS)), "def")


def prose(answer: str) -> list[str]:
    """The text of an answer, if it is worth training on."""
    text = fit_text(answer)
    return [text] if text else []


KINDS = {
    "stories": Kind(0.75, 110, story_request, prose),
    "texts": Kind(0.85, 160, text_request, prose),
    "functions": Kind(0.75, 200, function_request, whole_functions),
}
