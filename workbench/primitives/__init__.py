"""What every analysis is made of: running a model, reading it, changing it, and measuring the change.

Each file is one idea: `forward` (run), `hooks` (attach safely), `capture` (read), `interventions` (change; `algebra`
says what a change is), `metrics` (measure), `decode` (generate), `sweep` (one change at every head), `patching` and
`paths` (exchange activations between two runs), `attribution` (the same by gradients). Under the exchanges lie `sites`,
`senders` and `receivers` (names), `two_runs` and `batches` (bookkeeping), `suffix`, `frozen` and `swap` (partial runs).
Nothing here knows which paper uses it.
"""
