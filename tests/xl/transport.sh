#!/bin/sh
# The simplest transport that xl can have: transport.sh XL HOST xl ARGUMENTS...
# runs XL, the receiving host's xl, with the ARGUMENTS, on this machine.
receiver=$1
shift 3
exec "$receiver" "$@"
