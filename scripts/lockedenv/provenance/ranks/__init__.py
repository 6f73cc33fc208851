"""The check across the ranks of a job: the same environment, right collectives, no slow node.

Only cli imports this room. launch.py says which rank this is; meeting.py is how ranks meet and miss
each other; roll_call.py, collectives.py, bandwidth.py and certify.py are the stages; run.py runs
them in order; words.py says what was found.
"""
