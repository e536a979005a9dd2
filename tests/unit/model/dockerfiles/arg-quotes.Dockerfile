ARG A="img"
ARG B='$A'
ARG C=im\g
FROM "$A:1"
FROM 'q':1
FROM $C:1
