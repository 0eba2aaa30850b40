"""Beams in the engine: each is a request, and what beams have in common lies in shared blocks."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from course_lib.decode.beam import Candidate
from course_lib.decode.params import SamplingParams
from course_lib.engine.engine import Engine
from course_lib.engine.request import Request, Status


class PagedBeams:
    """Runs beams among the engine's other requests, which go on meanwhile; `with` frees what they hold.

    A request's last token is in no block yet, so it can be exchanged. The first successor of a beam takes
    over its request; another one gets a fork of it, which shares all its blocks and copies the last one,
    if that is not full, before it writes. A beam whose request was lost to preemption, or that had to wait
    for one that was, is read again, mostly from the prefix cache.
    """

    def __init__(self, engine: Engine, prompt: Sequence[int], beam_width: int):
        self.engine = engine
        self.prompt = list(prompt)
        self.width = beam_width
        self.requests: list[Request] = []
        self.index = itertools.count(beam_width)  # no two requests of the same rank

    def __enter__(self) -> "PagedBeams":
        return self

    def __exit__(self, *_: object) -> None:
        for request in self.requests:
            self.engine.cancel(request)

    def begin(self, count: int) -> list[Candidate]:
        """The prompt, with seats for all beams from the first step on.

        Raises:
            ImpossibleRequest: there is no room for the prompt, or for so many beams at once.
        """
        count = min(count, self.engine.runner.vocab_size)
        self.params = SamplingParams(temperature=0, logprobs=count, max_tokens=1 << 30, ignore_eos=True)
        self.requests = self.engine.requests(self.prompt, replace(self.params, n=self.width))
        for request in self.requests:
            request.draftable = False  # a beam grows by one token a step
        self.engine.scheduler.add(self.requests[0])
        return self._run()[0]

    def extend(self, steps: Sequence[tuple[int, int]], count: int) -> list[list[Candidate]]:
        beams, used = self.requests, {parent for parent, _ in steps}
        for index, request in enumerate(beams):
            if index not in used:  # before any fork, which takes its seat
                self.engine.cancel(request)
        self.requests = []
        for parent, token in steps:
            request = beams[parent]
            if parent in used and request.status is Status.RUNNING:
                used.remove(parent)
                request.tokens[-1] = token
                self.requests.append(request)
            else:
                self.requests.append(self._copy(request, token))
        return self._run()

    def _copy(self, request: Request, token: int) -> Request:
        """A request for the same tokens except for the last, on the same blocks where it can."""
        scheduler = self.engine.scheduler
        (copy,) = self.engine.requests([*request.tokens[:-1], token], self.params)
        copy.index = next(self.index)
        copy.draftable = False
        if request.status is Status.RUNNING and scheduler.num_running < scheduler.max_num_seqs:
            scheduler.fork(request, copy)
        else:
            scheduler.add(copy)
        return copy

    def _run(self) -> list[list[Candidate]]:
        """Step until each request has chosen a token; those that are early wait, without any blocks."""
        told = [len(request.logprobs) for request in self.requests]
        waiting = set(range(len(self.requests)))
        while waiting:
            self.engine.step()
            waiting = {i for i in waiting if len(self.requests[i].logprobs) == told[i]}
            for i, request in enumerate(self.requests):
                if waiting and i not in waiting:
                    self.engine.cancel(request)
                elif i in waiting and request.finish_reason:
                    raise RuntimeError(
                        f"A beam's request has ended: {request.error or request.finish_reason}."
                    )
        return [[Candidate(*pair) for pair in request.logprobs[-1].top] for request in self.requests]
