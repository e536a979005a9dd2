FROM a
ONBUILD ENTRYPOINT ["x"]
onbuild run --mount=from=b,target=/b true
