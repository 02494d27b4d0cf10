"""A rule as a string, in the notation of einops: ``"... i, o i, o -> ... o"``.

Letters are dims. ``(a b)`` is a product, ``(a + b)`` a sum, ``...`` any leading dims. A letter that is missing on the
right is contracted: zero is its neutral element. A dim of size 1 matches any letter, as in broadcasting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx

from fxcompress.axis import Axis, Dim, Dims, Size, concat, divide, size

if TYPE_CHECKING:
    from fxcompress.rule import Call


@dataclass(frozen=True)
class Einop:
    """An op whose equations are all said by one string."""

    spec: str | Callable[[Call], str]
    roles: Mapping[str, str]
    sizes: Mapping[str, Callable[[Call], int]]
    pins: Mapping[str, str]
    addresses: Mapping[str, str]

    def infer(self, call: Call) -> Dims:
        operands, result, letters = self.bind(call)
        call.letters = letters
        for letter, role in self.roles.items():
            if letter in letters:
                call.roles.append((role, letters[letter]))
        for letter, why in self.pins.items():
            if letter in letters:
                call.pin(letters[letter], why)
        for operand, letter in self.addresses.items():
            call.address(operand, letters[letter])
        kept = _letters_of(result)
        for node, terms in operands:
            for i, term in enumerate(terms):
                if not _letters_of([term]) <= kept:
                    call.reduce(node, i)
        self._limit_contexts(call, [*(terms for _, terms in operands), result], letters)
        return result_dims(result, letters)

    def _limit_contexts(self, call: Call, tensors: list[list], letters: Mapping[str, Dim]) -> None:
        """In x[m d] y[d n] a choice along d may not differ along m or n, even where both are the same axis.

        Nor in x[m e d] y[e d] along e where e is m, or has it: it would not be said which of the two is meant.
        """
        sets = [_letters_of(terms) for terms in tensors]
        for letter, dim in letters.items():
            around = [s for s in sets if letter in s]
            common, all_of_them = set.intersection(*around), set.union(*around)
            apart = [letters[other] for other in sorted(all_of_them - common)]
            call.limit(dim, [letters[other] for other in sorted(common)], apart)

    def bind(self, call: Call) -> tuple[list[tuple[fx.Node, list]], list, dict[str, Any]]:
        """Give every letter its dim and tie all that share one; also the size by letter for the cost functions."""
        spec = self.spec if isinstance(self.spec, str) else self.spec(call)
        left, right = parse(spec)
        names = [a.name for a in call.node.target._schema.arguments if "Tensor" in str(a.type)]
        present = [(call.args[n], terms) for n, terms in zip(names, left, strict=False) if call.args[n] is not None]
        operands = [(node, _spell_out(terms, len(call.env[node]))) for node, terms in present]
        letters: dict[str, Any] = {}
        pairs = [(t, d) for node, terms in operands for t, d in zip(terms, call.env[node], strict=True)]
        for term, dim in pairs:  # plain letters first: they give the sizes that products need
            if isinstance(term, str):
                _bind_letter(call, letters, term, dim)
        for term, dim in pairs:
            if not isinstance(term, str):
                self._bind_compound(call, letters, term, dim)
        rank = max((sum(1 for t in terms if isinstance(t, str) and t[0] == ".") for _, terms in operands), default=0)
        result = [t for term in right for t in ([f".{i}" for i in range(rank, 0, -1)] if term == "..." else [term])]
        return operands, result, letters

    def _bind_compound(self, call: Call, letters: dict[str, Dim], term: tuple, dim: Dim) -> None:
        """Tie a dim to a product or sum of letters; the one letter without a size gets what remains."""
        kind, names = term
        unknown = list(dict.fromkeys(n for n in names if n not in letters))
        for name in list(unknown):
            if name in self.sizes:
                letters[name] = _fresh(self.sizes[name](call))
                unknown.remove(name)
        if unknown:
            letters[unknown[0]] = _fresh(_remainder(kind, names, unknown, letters, dim, call))
        product = tuple(a for n in names for a in letters[n])
        call.tie(dim, product if kind == "product" else concat([letters[n] for n in names]))


def parse(spec: str) -> tuple[list[list], list]:
    """``"a (b c), (d + d) -> a"`` as ([[a, (product, bc)], [(sum, dd)]], [a])."""
    left, right = spec.split("->")
    return [_parse_dims(operand) for operand in left.split(",")], _parse_dims(right)


def _parse_dims(text: str) -> list:
    out: list[Any] = []
    tokens = text.replace("(", " ( ").replace(")", " ) ").split()
    while tokens:
        token = tokens.pop(0)
        if token == "(":
            inner = [tokens.pop(0) for _ in range(tokens.index(")"))]
            tokens.pop(0)
            kind = "sum" if "+" in inner else "product"
            out.append((kind, tuple(t for t in inner if t != "+")))
        else:
            out.append(token)
    return out


def _spell_out(terms: list, rank: int) -> list:
    """Replace ``...`` by as many letters as the operand has leading dims, numbered from the right (``.2 .1``)."""
    leading = rank - len(terms) + 1
    return [t for term in terms for t in ([f".{i}" for i in range(leading, 0, -1)] if term == "..." else [term])]


def _bind_letter(call: Call, letters: dict[str, Dim], letter: str, dim: Dim) -> None:
    bound = letters.get(letter)
    if not bound:  # unbound, or bound to size 1, which broadcasts
        letters[letter] = dim
    elif dim:
        call.tie(bound, dim)


def _remainder(kind: str, names: tuple, unknown: list, letters: Mapping[str, Dim], dim: Dim, call: Call) -> Size:
    if len(unknown) > 1:
        raise AssertionError(f"{call.name}: the sizes of {unknown} cannot be told apart")
    if kind == "sum":
        known = sum(size(letters[n]) for n in names if n in letters)
        rest = divide(size(dim) - known, sum(n == unknown[0] for n in names))
    else:
        known = 1
        for n in names:
            known = known * (size(letters[n]) if n in letters else 1)
        rest = divide(size(dim), known)
    if rest is None:
        raise AssertionError(f"{call.name}: a dim of {size(dim)} is not a {kind} over {names}")
    return rest


def _fresh(n: Size) -> Dim:
    return (Axis(n),) if n != 1 else ()


def result_dims(terms: list, letters: Mapping[str, Dim]) -> Dims:
    out = []
    for term in terms:
        if isinstance(term, str):
            out.append(letters[term])
        elif term[0] == "product":
            out.append(tuple(a for n in term[1] for a in letters[n]))
        else:
            out.append(concat([letters[n] for n in term[1]]))
    return tuple(out)


def _letters_of(terms: list) -> set[str]:
    return {t for term in terms for t in ([term] if isinstance(term, str) else term[1])}
