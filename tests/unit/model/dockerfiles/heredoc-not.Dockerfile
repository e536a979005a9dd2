FROM a
RUN echo "<<EOF" '<<EOF' a<<EOF \<<EOF
RUN ["sh", "-c", "cat <<EOF"]
RUN cat <<<word
RUN echo $((1<<2))
ENV A=<<EOF
LABEL x="<<EOF"
