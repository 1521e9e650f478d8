"""Coverage-guided fuzzing of what a peer's bytes reach first: HTTP/2 with HPACK, gRPC's messages, and the front above them.

    make fuzz MINUTES=60 ─► __main__ ─► for each target: atheris ─► Target.run(data)
    make test ────────────► test_fuzz ─► the committed corpus ────► Target.run(data)

Rules of this package:
- a target is a function of bytes that raises when something is wrong. It needs no atheris, no clock and no socket, and does the
  same each time: what one process found, another replays;
- every claim about the product is an assertion here, and has a canary in `test_fuzz`: something broken that the target must find;
- what is found becomes a named test elsewhere. A corpus (`tests/edge/corpus`) only keeps what reaches new code.
"""
