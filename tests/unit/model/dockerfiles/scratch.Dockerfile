FROM scratch
COPY --from=busybox:stable /bin/busybox /bin/sh
