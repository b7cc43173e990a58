"""What torch's threads read when torch is imported, so this module comes first.

On Linux, torch's OpenMP threads wait for each other by spinning for milliseconds. Where another program
wants a core, the others spin until the system gives it back: on two cores beside one busy program an
update of the default run takes 27 s instead of 0.9. With threads that soon sleep it takes 1.6 s there,
and up to 8 % more on an idle machine. A user's own setting stays.
"""

import os

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"
