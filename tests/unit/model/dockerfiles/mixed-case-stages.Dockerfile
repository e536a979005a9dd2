FROM debian AS Build
FROM BUILD AS second
COPY --from=buILD /a /b
FROM sEcond
