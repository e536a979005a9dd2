"""How long the tests marked `soak` go on."""

import os

# Kills in a test; the seeds and inputs of others follow from it.
ROUNDS = int(os.environ.get("SOAK_ROUNDS", "20"))
# Inputs of a property.
EXAMPLES = 50 * ROUNDS
