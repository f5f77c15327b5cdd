"""Twenty conversations as people have them: questions, code, lists, other scripts, a long text."""

from __future__ import annotations

from pomona.data.builtin_text import evaluation_text

Messages = list[dict[str, str]]


def _user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


CODE = '''Find the bug in this function.

```python
def moving_average(values, width):
    """Mean of every window of `width` values."""
    total = sum(values[:width])
    means = [total / width]
    for i in range(width, len(values)):
        total += values[i] - values[i - width + 1]
        means.append(total / width)
    return means
```'''

TABLE = """Which month had the largest rise over the month before?

| month    | visitors | tickets | refunds |
|----------|---------:|--------:|--------:|
| January  |    1,204 |     988 |      12 |
| February |    1,377 |   1,020 |       9 |
| March    |    2,015 |   1,754 |      31 |
| April    |    1,998 |   1,760 |      28 |
"""

LIST = """Sort these into fruit, vegetables and tools:
1. hammer
2. quince
3. leek
4. chisel
5. pear
6. parsnip
7. spanner
8. medlar"""

# English prose of some 560 tokens: longer than a native step and than two chunks of attention.
LONG = " ".join(evaluation_text().split()[:400])

CONVERSATIONS: tuple[Messages, ...] = (
    _user("What is the difference between weather and climate?"),
    _user(f"Summarise this text in two sentences.\n\n{LONG}"),
    _user(CODE),
    _user(TABLE),
    _user(LIST),
    _user("Write a haiku about an orchard in winter."),
    _user("Erkläre in drei Sätzen, warum der Himmel blau ist und der Sonnenuntergang rot."),
    _user("Écris une courte lettre à ma voisine pour la remercier d'avoir arrosé mes plantes cet été."),
    _user("请用简单的话解释什么是光合作用。"),
    _user("リンゴの木の育て方を教えてください。"),
    _user("Что такое простое число? Приведи пять примеров."),
    _user("Give me 3 ideas for a party 🎉🍎 with a budget of 50 € — no alcohol, please! 👩‍👩‍👧‍👦"),
    _user(
        "A train leaves at 14:35 and arrives at 17:10. It stops twice for 7 minutes. How long does it move?"
    ),
    _user('Turn this into JSON with the keys "name", "age" and "city": Ada, who is 36, lives in London.'),
    _user(
        "SELECT name, COUNT(*) FROM orders GROUP BY name HAVING COUNT(*) > 3 ORDER BY 2;\nWhat does it do?"
    ),
    _user("hi"),
    [
        {"role": "system", "content": "You are a patient teacher. You answer with a question."},
        {"role": "user", "content": "Is zero an even number?"},
    ],
    [
        {"role": "user", "content": "Name a river in Europe."},
        {"role": "assistant", "content": "The Danube."},
        {"role": "user", "content": "Through which capitals does it flow?"},
        {"role": "assistant", "content": "Vienna, Bratislava, Budapest and Belgrade."},
        {"role": "user", "content": "And where does it end?"},
    ],
    [
        {"role": "system", "content": "Rewrite the text so that it is friendly and short."},
        {
            "role": "user",
            "content": "I have told you FOUR times now that the invoice 2291-B is wrong. Mend it. Today.",
        },
    ],
    _user(
        "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }  // make this faster in C\t\t\n\n\n   Thanks!   "
    ),
)
