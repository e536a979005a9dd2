FROM a AS all
MAINTAINER someone <a@b>
ENV A=1 B="two words" C=three\ words
ENV OLD form of it
LABEL a.b="c d" e=f
EXPOSE 80 443/tcp
ADD https://example.org/x /x
COPY ["a b", "/c d/"]
USER 1000:1000
VOLUME /data /more
VOLUME ["/json"]
WORKDIR /work dir
ARG X=1 Y
STOPSIGNAL SIGTERM
SHELL ["/bin/bash", "-c"]
HEALTHCHECK NONE
CMD echo hello
ENTRYPOINT exec "$0"
ONBUILD RUN true
