FROM a
RUN --mount=type=cache,target=/c --network=none --mount="type=bind,from=x:1,target=/x" true
COPY --chown=1:2 --from='y' --link a b
HEALTHCHECK --interval=3s --timeout=1s CMD true
ADD --chmod=644 a b
RUN -- --mount=type=bind,from=z true
