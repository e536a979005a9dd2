FROM a
RUN --mount=from=b,target=/b --mount=target=/c,FROM=c:2,type=bind --mount=type=tmpfs,from=no,target=/t --mount=type=secret,id=s --mount=type=cache,from=d,target=/d true
RUN --mount=type=bind,target=/ctx ls
