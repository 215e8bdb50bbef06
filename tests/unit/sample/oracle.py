"""An independent reading of questions: answers from the bare arrangement, by other code than the sample's."""

import re

Arrangement = tuple[tuple[str, str, str], ...]  # (kind, color, place) of each object


def true_answers(arrangement: Arrangement, question: str) -> set[str]:
    """Return every answer that is right; a well-posed question has exactly one."""
    question = question.split("\n")[0]
    if found := re.fullmatch(r"Is there (a|an) (\w+) in the image\?", question):
        assert (found[1] == "an") == (found[2] in {"arrow", "umbrella"})
        return {"yes" if any(kind == found[2] for kind, _, _ in arrangement) else "no"}
    if found := re.fullmatch(r"What color is the (\w+)\?", question):
        return {color for kind, color, _ in arrangement if kind == found[1]}
    if found := re.fullmatch(r"What is the (\w+) object\?", question):
        return {kind for kind, color, _ in arrangement if color == found[1]}
    if found := re.fullmatch(r"What is (?:in|at|on) the ([\w ]+)\?", question):
        return {kind for kind, _, place in arrangement if place == found[1]}
    if found := re.fullmatch(r"Where is the (\w+)\?", question):
        return {place for kind, _, place in arrangement if kind == found[1]}
    if found := re.fullmatch(r"Is the (\w+) (\w+)\?", question):
        return {"yes" if color == found[2] else "no" for kind, color, _ in arrangement if kind == found[1]}
    if question == "How many objects are in the image?":
        return {str(len(arrangement))}
    if found := re.fullmatch(r"How many (\w+) are in the image\?", question):
        singular = {"boxes": "box", "crosses": "cross"}.get(found[1], found[1].removesuffix("s"))
        return {str(sum(kind == singular for kind, _, _ in arrangement))}
    raise AssertionError(f"no reading of {question!r}")
