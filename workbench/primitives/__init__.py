"""What every analysis is made of: running a model, reading it, changing it, and measuring the change.

Each file is one idea: `forward` (run), `hooks` (attach safely), `capture` (read), `interventions` (change; `algebra`
says what a change is), `metrics` (measure), `decode` (generate). Nothing here knows which paper uses it.
"""
