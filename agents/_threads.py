"""What torch's threads read when torch is imported, so this module comes first.

On Linux, torch's OpenMP threads wait for each other by spinning for milliseconds. Where another program
wants a core, the others spin until the system gives it back: on two cores with one busy program an
update of the default run took 32 s instead of 0.8. Threads that soon sleep take 1.7 s there, and 8 %
more on an idle machine. A user's own setting stays.
"""

import os

if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"
