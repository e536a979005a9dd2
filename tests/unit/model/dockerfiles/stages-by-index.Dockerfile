FROM one
RUN a
FROM two AS b
RUN b
FROM three
COPY --from=0 /a /b
COPY --from=1 /a /b
COPY --from=b /c /d
