from debian AS base
run true
from base
copy --from=base /a /b
entrypoint ["a"]
