"""The network as pure functions of parameters, inputs and state.

`stack` puts together what each model has: input, layers, dropout, head. A recurrence is one file in `cells`. This wing knows
nothing of optimisers or files.
"""
